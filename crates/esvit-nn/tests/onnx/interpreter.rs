//! Computes an ONNX graph of the operators that backbones have, in f64, by their definitions.

use std::collections::HashMap;

/// A field of a protocol-buffer message.
#[derive(Debug, Clone)]
pub(crate) enum Field<'a> {
    Integer(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, in order.
pub(crate) fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Integer(varint(&mut bytes)),
            2 => {
                let len = varint(&mut bytes) as usize;
                Field::Bytes(split(&mut bytes, len))
            }
            5 => Field::Float(f32::from_le_bytes(split(&mut bytes, 4).try_into().unwrap())),
            kind => panic!("no field of kind {kind} is expected"),
        };
        found.push((key >> 3, field));
    }
    found
}

fn split<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (first, rest) = bytes.split_at(len);
    *bytes = rest;
    first
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = split(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// The messages and texts of a message under one number.
pub(crate) fn all<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Vec<&'a [u8]> {
    let of_number = fields.iter().filter(|(other, _)| *other == number);
    of_number
        .map(|(_, field)| match field {
            Field::Bytes(bytes) => *bytes,
            other => panic!("{other:?} instead of bytes"),
        })
        .collect()
}

fn integers(fields: &[(u64, Field<'_>)], number: u64) -> Vec<i64> {
    let of_number = fields.iter().filter(|(other, _)| *other == number);
    of_number
        .map(|(_, field)| match field {
            Field::Integer(value) => *value as i64,
            other => panic!("{other:?} instead of a number"),
        })
        .collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Values of any type, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Value {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Value {
    pub(crate) fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?}");
        Self { shape: shape.into(), data }
    }

    /// Values made by the place along every axis.
    fn made(shape: &[usize], make: impl Fn(&[usize]) -> f64) -> Self {
        let len = shape.iter().product();
        let mut place = vec![0; shape.len()];
        let data = (0..len).map(|_| {
            let value = make(&place);
            for axis in (0..shape.len()).rev() {
                place[axis] += 1;
                if place[axis] < shape[axis] {
                    break;
                }
                place[axis] = 0;
            }
            value
        });
        Self { shape: shape.into(), data: data.collect() }
    }

    fn at(&self, place: &[usize]) -> f64 {
        let index = place.iter().zip(&self.shape).fold(0, |index, (&at, &size)| index * size + at);
        self.data[index]
    }

    /// The entry for a place of a larger shape, by the rules of broadcasting.
    fn broadcast(&self, place: &[usize]) -> f64 {
        let skipped = place.len() - self.shape.len();
        let own = place[skipped..].iter().zip(&self.shape);
        let own: Vec<usize> = own.map(|(&at, &size)| if size == 1 { 0 } else { at }).collect();
        self.at(&own)
    }

    fn map(&self, function: impl Fn(f64) -> f64) -> Self {
        Self::new(&self.shape, self.data.iter().map(|&value| function(value)).collect())
    }

    fn rows(&self, function: impl Fn(&mut [f64])) -> Self {
        let mut result = self.clone();
        let width = self.shape[self.shape.len() - 1];
        result.data.chunks_exact_mut(width).for_each(function);
        result
    }
}

/// Reduces axes of a value to size 1.
fn reduce(
    x: &Value,
    axes: &[i64],
    function: impl Fn(&mut dyn Iterator<Item = f64>) -> f64,
) -> Value {
    let is_over = |axis: usize| {
        axes.iter().any(|&over| over == axis as i64 || over + x.shape.len() as i64 == axis as i64)
    };
    let sides = x.shape.iter().enumerate();
    let (kept, over): (Vec<usize>, Vec<usize>) =
        sides.map(|(axis, &side)| if is_over(axis) { (1, side) } else { (side, 1) }).unzip();
    Value::made(&kept, |place| {
        let mut all = (0..over.iter().product()).map(|mut index| {
            let mut at = place.to_vec();
            for axis in (0..over.len()).rev() {
                at[axis] += index % over[axis];
                index /= over[axis];
            }
            x.at(&at)
        });
        function(&mut all)
    })
}

fn elementwise(a: &Value, b: &Value, function: impl Fn(f64, f64) -> f64) -> Value {
    let dimensions = a.shape.len().max(b.shape.len());
    let side = |value: &Value, axis: usize| {
        (axis + value.shape.len()).checked_sub(dimensions).map_or(1, |axis| value.shape[axis])
    };
    let shape = (0..dimensions).map(|axis| {
        let [a, b] = [side(a, axis), side(b, axis)];
        assert!(a == b || a == 1 || b == 1, "{a} and {b} do not go together");
        a.max(b)
    });
    let shape: Vec<usize> = shape.collect();
    Value::made(&shape, |place| function(a.broadcast(place), b.broadcast(place)))
}

fn matmul(a: &Value, b: &Value) -> Value {
    let [rows, inner] = [a.shape[a.shape.len() - 2], a.shape[a.shape.len() - 1]];
    let columns = b.shape[b.shape.len() - 1];
    assert_eq!(b.shape[b.shape.len() - 2], inner);
    let mut shape = a.shape.clone();
    *shape.last_mut().unwrap() = columns;
    let batches = a.data.len() / (rows * inner);
    let shared = b.data.len() == inner * columns;
    assert!(shared || b.data.len() == batches * inner * columns);
    let mut data = Vec::with_capacity(batches * rows * columns);
    for batch in 0..batches {
        let b = if shared { &b.data[..] } else { &b.data[batch * inner * columns..] };
        for row in a.data[batch * rows * inner..][..rows * inner].chunks_exact(inner) {
            data.extend((0..columns).map(|column| -> f64 {
                row.iter().enumerate().map(|(k, value)| value * b[k * columns + column]).sum()
            }));
        }
    }
    Value::new(&shape, data)
}

/// The error function, by its series.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// An attribute of a node.
#[derive(Debug, Clone, PartialEq)]
enum Attribute {
    Float(f64),
    Integers(Vec<i64>),
}

struct Node {
    operator: String,
    inputs: Vec<String>,
    output: String,
    attributes: HashMap<String, Attribute>,
}

impl Node {
    fn read(bytes: &[u8]) -> Self {
        let fields = fields(bytes);
        let texts = |number| all(&fields, number).into_iter().map(text).collect::<Vec<_>>();
        let attributes = all(&fields, 5).into_iter().map(|bytes| {
            let fields = self::fields(bytes);
            let name = text(all(&fields, 1)[0]);
            let float = fields.iter().find_map(|(number, field)| match field {
                Field::Float(value) if *number == 2 => Some(f64::from(*value)),
                _ => None,
            });
            let value = match integers(&fields, 20)[..] {
                [1] => Attribute::Float(float.unwrap()),
                [2] => Attribute::Integers(integers(&fields, 3)),
                [7] => Attribute::Integers(integers(&fields, 8)),
                ref other => panic!("an attribute of kind {other:?}"),
            };
            (name, value)
        });
        let attributes = attributes.collect();
        let [output]: [String; 1] = texts(2).try_into().unwrap();
        let operator = texts(4).swap_remove(0);
        Self { operator, inputs: texts(1), output, attributes }
    }

    fn integers(&self, name: &str) -> &[i64] {
        match &self.attributes[name] {
            Attribute::Integers(values) => values,
            other => panic!("{other:?}"),
        }
    }

    fn float(&self, name: &str) -> f64 {
        match self.attributes[name] {
            Attribute::Float(value) => value,
            ref other => panic!("{other:?}"),
        }
    }

    /// Without the reduced axes, of size 1, unless they are kept.
    fn reduced(&self, mut result: Value) -> Value {
        if self.attributes.get("keepdims") == Some(&Attribute::Integers(vec![0])) {
            for &axis in self.integers("axes").iter().rev() {
                assert_eq!(result.shape.remove(axis as usize), 1);
            }
        }
        result
    }

    fn convolution(&self, x: &Value, weight: &Value) -> Value {
        let or = |name: &str, default: &[i64]| match self.attributes.get(name) {
            Some(_) => self.integers(name).to_vec(),
            None => default.to_vec(),
        };
        let [outputs, depth, side, across] = weight.shape[..] else { panic!() };
        assert_eq!(self.integers("kernel_shape"), [side as i64, across as i64]);
        let [strides, pads] = [or("strides", &[1, 1]), or("pads", &[0; 4])];
        let groups = or("group", &[1])[0] as usize;
        assert_eq!((x.shape[1], outputs % groups), (depth * groups, 0));
        let size = |axis: usize, filter: usize| {
            let padded = x.shape[2 + axis] as i64 + pads[axis] + pads[2 + axis];
            ((padded - filter as i64) / strides[axis] + 1) as usize
        };
        Value::made(&[x.shape[0], outputs, size(0, side), size(1, across)], |place| {
            let [image, output, row, column] = place[..] else { panic!() };
            let first = output / (outputs / groups) * depth;
            let mut sum = 0.0;
            for input in 0..depth {
                for y in 0..side {
                    for z in 0..across {
                        let at = [
                            (row as i64 * strides[0]) + y as i64 - pads[0],
                            (column as i64 * strides[1]) + z as i64 - pads[1],
                        ];
                        let inside = (0..2).all(|a| (0..x.shape[2 + a] as i64).contains(&at[a]));
                        if inside {
                            let pixel = [image, first + input, at[0] as usize, at[1] as usize];
                            sum += x.at(&pixel) * weight.at(&[output, input, y, z]);
                        }
                    }
                }
            }
            sum
        })
    }

    fn max_pool(&self, x: &Value) -> Value {
        let [side, strides, pads] = ["kernel_shape", "strides", "pads"].map(|a| self.integers(a));
        let size = |axis: usize| {
            let padded = x.shape[2 + axis] as i64 + pads[axis] + pads[2 + axis];
            ((padded - side[axis]) / strides[axis] + 1) as usize
        };
        Value::made(&[x.shape[0], x.shape[1], size(0), size(1)], |place| {
            let mut largest = f64::NEG_INFINITY;
            for tap in 0..side[0] * side[1] {
                let tap = [tap / side[1], tap % side[1]];
                let at = [0, 1].map(|a| place[2 + a] as i64 * strides[a] + tap[a] - pads[a]);
                if (0..2).all(|a| (0..x.shape[2 + a] as i64).contains(&at[a])) {
                    let pixel = [place[0], place[1], at[0] as usize, at[1] as usize];
                    largest = largest.max(x.at(&pixel));
                }
            }
            largest
        })
    }

    fn compute(&self, inputs: &[&Value]) -> Value {
        match (self.operator.as_str(), inputs) {
            ("Identity", [x]) => (*x).clone(),
            ("Cast", [x]) => {
                assert_eq!(self.integers("to"), [1], "to f32");
                (*x).clone()
            }
            ("Add", [a, b]) => elementwise(a, b, |a, b| a + b),
            ("Sub", [a, b]) => elementwise(a, b, |a, b| a - b),
            ("Mul", [a, b]) => elementwise(a, b, |a, b| a * b),
            ("Div", [a, b]) => elementwise(a, b, |a, b| a / b),
            ("Max", [a, b]) => elementwise(a, b, f64::max),
            ("Pow", [a, b]) => elementwise(a, b, f64::powf),
            ("Erf", [x]) => x.map(erf),
            ("Exp", [x]) => x.map(f64::exp),
            ("Log", [x]) => x.map(f64::ln),
            ("Sqrt", [x]) => x.map(f64::sqrt),
            ("Abs", [x]) => x.map(f64::abs),
            ("Tanh", [x]) => x.map(f64::tanh),
            ("Sigmoid", [x]) => x.map(|x| 1.0 / (1.0 + (-x).exp())),
            ("Relu", [x]) => x.map(|x| x.max(0.0)),
            ("MatMul", [a, b]) => matmul(a, b),
            ("Softmax", [x]) => {
                assert_eq!(self.integers("axis"), [-1]);
                x.rows(|row| {
                    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    row.iter_mut().for_each(|value| *value = (*value - largest).exp());
                    let sum: f64 = row.iter().sum();
                    row.iter_mut().for_each(|value| *value /= sum);
                })
            }
            ("LogSoftmax", [x]) => {
                assert_eq!(self.integers("axis"), [-1]);
                x.rows(|row| {
                    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = row.iter().map(|value| (value - largest).exp()).sum();
                    row.iter_mut().for_each(|value| *value -= largest + sum.ln());
                })
            }
            ("LayerNormalization", [x, weight, bias]) => {
                assert_eq!(self.integers("axis"), [-1]);
                let epsilon = self.float("epsilon");
                x.rows(|row| {
                    let len = row.len() as f64;
                    let mean = row.iter().sum::<f64>() / len;
                    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / len;
                    for (i, value) in row.iter_mut().enumerate() {
                        let normalized = (*value - mean) / (variance + epsilon).sqrt();
                        *value = normalized * weight.data[i] + bias.data[i];
                    }
                })
            }
            ("Reshape", [x, shape]) => {
                let mut shape: Vec<i64> = shape.data.iter().map(|&side| side as i64).collect();
                for (axis, side) in shape.iter_mut().enumerate() {
                    if *side == 0 {
                        *side = x.shape[axis] as i64;
                    }
                }
                let known: i64 = shape.iter().filter(|&&side| side >= 0).product();
                let rest = x.data.len() as i64 / known;
                let side = |&side: &i64| if side < 0 { rest as usize } else { side as usize };
                Value::new(&shape.iter().map(side).collect::<Vec<_>>(), x.data.clone())
            }
            ("Transpose", [x]) => {
                let order: Vec<usize> =
                    self.integers("perm").iter().map(|&axis| axis as usize).collect();
                let shape: Vec<usize> = order.iter().map(|&axis| x.shape[axis]).collect();
                Value::made(&shape, |place| {
                    let mut from = vec![0; place.len()];
                    order.iter().zip(place).for_each(|(&axis, &at)| from[axis] = at);
                    x.at(&from)
                })
            }
            ("Gather", [x, indices]) => {
                let [axis] = self.integers("axis")[..] else { panic!("one axis") };
                let axis = axis as usize;
                let mut shape = x.shape.clone();
                shape.splice(axis..=axis, indices.shape.iter().copied());
                let added = indices.shape.len();
                Value::made(&shape, |place| {
                    let mut from = place.to_vec();
                    let index = indices.at(&place[axis..axis + added]) as usize;
                    from.splice(axis..axis + added, [index]);
                    assert!(index < x.shape[axis], "{index} of {}", x.shape[axis]);
                    x.at(&from)
                })
            }
            ("ArgMin", [x]) => {
                assert_eq!(
                    (self.integers("axis"), self.integers("keepdims")),
                    (&[1][..], &[0][..])
                );
                let [rows, columns] = x.shape[..] else { panic!("a matrix") };
                let first = |row: &[f64]| {
                    let least = row.iter().copied().fold(f64::INFINITY, f64::min);
                    row.iter().position(|&value| value == least).unwrap() as f64
                };
                Value::new(&[rows], x.data.chunks_exact(columns).map(first).collect())
            }
            ("Pad", [x, pads]) => {
                let before = |axis: usize| pads.data[axis] as usize;
                let after = |axis: usize| pads.data[x.shape.len() + axis] as usize;
                let sides = x.shape.iter().enumerate();
                let shape: Vec<usize> =
                    sides.map(|(axis, side)| before(axis) + side + after(axis)).collect();
                Value::made(&shape, |place| {
                    let from: Option<Vec<usize>> = place
                        .iter()
                        .enumerate()
                        .map(|(axis, at)| {
                            at.checked_sub(before(axis)).filter(|&at| at < x.shape[axis])
                        })
                        .collect();
                    from.map_or(0.0, |from| x.at(&from))
                })
            }
            ("ReduceMean", [x]) => {
                let axes = self.integers("axes");
                let count: usize = axes.iter().map(|&axis| x.shape[axis as usize]).product();
                self.reduced(reduce(x, axes, |all| all.sum::<f64>() / count as f64))
            }
            ("ReduceMax", [x]) => self.reduced(reduce(x, self.integers("axes"), |all| {
                all.fold(f64::NEG_INFINITY, f64::max)
            })),
            ("ReduceL2", [x]) => self.reduced(reduce(x, self.integers("axes"), |all| {
                all.map(|value| value * value).sum::<f64>().sqrt()
            })),
            ("ReduceSum", [x, axes]) => {
                let axes: Vec<i64> = axes.data.iter().map(|&axis| axis as i64).collect();
                reduce(x, &axes, |all| all.sum())
            }
            ("Shape", [x]) => {
                Value::new(&[x.shape.len()], x.shape.iter().map(|&side| side as f64).collect())
            }
            ("Expand", [x, shape]) => {
                let ones = vec![0.0; shape.data.iter().product::<f64>() as usize];
                let shape: Vec<usize> = shape.data.iter().map(|&side| side as usize).collect();
                elementwise(x, &Value::new(&shape, ones), |x, _| x)
            }
            ("Concat", inputs) => {
                let axis = self.integers("axis")[0] as usize;
                let mut shape = inputs[0].shape.clone();
                for x in inputs {
                    for (at, side) in shape.iter().enumerate() {
                        assert!(at == axis || x.shape[at] == *side, "{:?} in {shape:?}", x.shape);
                    }
                }
                shape[axis] = inputs.iter().map(|x| x.shape[axis]).sum();
                Value::made(&shape, |place| {
                    let mut place = place.to_vec();
                    for x in inputs {
                        if place[axis] < x.shape[axis] {
                            return x.at(&place);
                        }
                        place[axis] -= x.shape[axis];
                    }
                    panic!("beyond all inputs")
                })
            }
            ("Slice", [x, starts, ends, axes, steps]) => {
                let only = |value: &Value| {
                    assert_eq!(value.shape, [1]);
                    value.data[0] as i64
                };
                let (axis, step) = (only(axes) as usize, only(steps));
                let side = x.shape[axis] as i64;
                let from_end = |at: i64| if at < 0 { at.saturating_add(side) } else { at };
                let limits = if step > 0 { (0, side) } else { (-1, side - 1) };
                let [start, end] =
                    [starts, ends].map(|value| from_end(only(value)).clamp(limits.0, limits.1));
                let len = (end - start + step - step.signum()) / step;
                let mut shape = x.shape.clone();
                shape[axis] = len.max(0) as usize;
                Value::made(&shape, |place| {
                    let mut place = place.to_vec();
                    place[axis] = (start + step * place[axis] as i64) as usize;
                    x.at(&place)
                })
            }
            ("Conv", [x, weight]) => self.convolution(x, weight),
            ("MaxPool", [x]) => self.max_pool(x),
            (operator, inputs) => panic!("{operator} of {} inputs", inputs.len()),
        }
    }
}

/// Stored values: their name, their type's number, and the values.
fn stored(bytes: &[u8]) -> (String, i64, Value) {
    let fields = fields(bytes);
    let shape: Vec<usize> = integers(&fields, 1).into_iter().map(|side| side as usize).collect();
    let [kind] = integers(&fields, 2)[..] else { panic!("one type") };
    let data = all(&fields, 9)[0];
    let data: Vec<f64> = match kind {
        1 => data
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
            .collect(),
        7 => data
            .chunks_exact(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as f64)
            .collect(),
        // The upper half of an f32.
        16 => data
            .chunks_exact(2)
            .map(|b| f64::from(f32::from_le_bytes([0, 0, b[0], b[1]])))
            .collect(),
        other => panic!("type {other}"),
    };
    (text(all(&fields, 8)[0]), kind, Value::new(&shape, data))
}

/// A model that was read.
pub(crate) struct Model {
    pub(crate) facts: Vec<(String, String)>,
    pub(crate) operator_set: Vec<i64>,
    /// Name, type's number and shape of inputs and outputs; -1 for a named dimension.
    pub(crate) inputs: Vec<(String, i64, Vec<i64>)>,
    pub(crate) outputs: Vec<(String, i64, Vec<i64>)>,
    /// Types of the stored values by name.
    pub(crate) types: HashMap<String, i64>,
    values: HashMap<String, Value>,
    nodes: Vec<Node>,
}

impl Model {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let model = fields(bytes);
        let facts = all(&model, 14).into_iter().map(|entry| {
            let entry = fields(entry);
            (text(all(&entry, 1)[0]), text(all(&entry, 2)[0]))
        });
        let [graph] = all(&model, 7)[..] else { panic!("one graph") };
        let graph = fields(graph);
        let (mut types, mut values) = (HashMap::new(), HashMap::new());
        for bytes in all(&graph, 5) {
            let (name, kind, value) = stored(bytes);
            let twice = values.insert(name.clone(), value);
            assert!(twice.is_none(), "`{name}` is stored twice");
            types.insert(name, kind);
        }
        let interface = |number| {
            all(&graph, number)
                .into_iter()
                .map(|bytes| {
                    let value = fields(bytes);
                    let kind = fields(all(&value, 2)[0]);
                    let tensor = fields(all(&kind, 1)[0]);
                    let shape = fields(all(&tensor, 2)[0]);
                    let sides = all(&shape, 1).into_iter().map(|dimension| {
                        integers(&fields(dimension), 1).first().copied().unwrap_or(-1)
                    });
                    (text(all(&value, 1)[0]), integers(&tensor, 1)[0], sides.collect())
                })
                .collect()
        };
        Self {
            facts: facts.collect(),
            operator_set: integers(&fields(all(&model, 8)[0]), 2),
            inputs: interface(11),
            outputs: interface(12),
            types,
            values,
            nodes: all(&graph, 1).into_iter().map(Node::read).collect(),
        }
    }

    /// The value of every name for an input.
    pub(crate) fn run(&self, input: &str, value: Value) -> HashMap<String, Value> {
        let mut values = self.values.clone();
        values.insert(input.into(), value);
        for node in &self.nodes {
            let inputs = node.inputs.iter().map(|name| {
                values.get(name).unwrap_or_else(|| panic!("`{name}` comes before it is made"))
            });
            let result = node.compute(&inputs.collect::<Vec<_>>());
            let twice = values.insert(node.output.clone(), result);
            assert!(twice.is_none(), "`{}` is made twice", node.output);
        }
        values
    }
}
