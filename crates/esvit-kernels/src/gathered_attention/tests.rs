//! Against the definition in f64, on tables of every kind.

use proptest::prelude::*;

use super::*;
use crate::element::{self, Bf16, widened};
use crate::isa::tests::under_each;
use crate::rng::Rng;
use crate::testing::{assert_gradient, assert_near_for, dot, normal, rounded, wide};

/// Images whose tables are random, with their biases.
#[derive(Debug)]
struct Case {
    segments: Vec<(usize, AttentionGroups, Vec<Vec<f32>>)>,
    heads: usize,
    d: usize,
    is_joint: bool,
}

/// What the tables of an image are like.
#[derive(Debug, Clone, Copy)]
struct Kind {
    is_joint: bool,
    /// Keys are the queries of the same group.
    is_apart: bool,
    /// Rows of a group in the table of hidden keys: none, one, or one for each query.
    hidden: u64,
    has_bias: bool,
}

fn random_kind(rng: &mut Rng) -> Kind {
    let is_joint = rng.chance(0.5);
    Kind {
        is_joint,
        is_apart: is_joint && rng.chance(0.3),
        hidden: rng.below(3),
        has_bias: rng.chance(0.5),
    }
}

fn random_groups(rng: &mut Rng, kind: Kind, most: u64) -> AttentionGroups {
    let mut below = |n: u64| rng.below(n) as usize;
    let context = 1 + below(most);
    let queries = context + below(4);
    let keys = if kind.is_joint { queries } else { 1 + below(12) };
    let rows = ImageRows { queries, keys, context };
    let mut query_rows: Vec<i32> = (0..queries as i32).collect();
    let mut context_rows: Vec<i32> = (0..context as i32).collect();
    rng.shuffle(&mut query_rows);
    rng.shuffle(&mut context_rows);
    let mut pairs: Vec<[i32; 2]> =
        query_rows.into_iter().zip(context_rows).map(<[i32; 2]>::from).collect();
    let mut tables = Vec::new();
    let mut parts = vec![pairs.split_off(pairs.len() / 3)];
    parts.extend((!pairs.is_empty()).then_some(pairs));
    for mut part in parts {
        let m = 1 + rng.below(1 + most / 3) as usize;
        // Some groups may be padding alone.
        let groups = part.len().div_ceil(m) + rng.below(2) as usize;
        part.resize(groups * m, [0, context as i32]);
        rng.shuffle(&mut part);
        let (n, key_row): (usize, Vec<i32>) = if kind.is_apart {
            let of_key = |&[query, row]: &[i32; 2]| {
                if row < context as i32 { query } else { keys as i32 }
            };
            (m, part.iter().map(of_key).collect())
        } else {
            let n = 1 + rng.below(20) as usize;
            (n, (0..groups * n).map(|_| rng.below(keys as u64 + 1) as i32).collect())
        };
        let hidden_rows = [0, 1, m][kind.hidden as usize];
        // The first key is seen by all.
        let hidden = |at: usize| !at.is_multiple_of(n) && rng.chance(0.4);
        tables.push(GroupTable {
            queries: m,
            keys: n,
            query_row: part.iter().map(|pair| pair[0]).collect(),
            context_row: part.iter().map(|pair| pair[1]).collect(),
            key_row,
            hidden: (0..groups * hidden_rows * n).map(hidden).collect(),
        });
    }
    AttentionGroups::new(rows, tables)
}

impl Case {
    fn new(kind: Kind, segments: Vec<(usize, AttentionGroups)>, [heads, d]: [usize; 2]) -> Self {
        let mut stream = 100;
        let mut biases = |groups: &AttentionGroups| {
            let tables = groups.tables().iter().filter(|_| kind.has_bias);
            let biases = tables.map(|table| {
                stream += 1;
                normal(heads * table.queries * table.keys, stream)
            });
            biases.collect::<Vec<_>>()
        };
        let segments = segments.into_iter().map(|(images, groups)| {
            let biases = biases(&groups);
            (images, groups, biases)
        });
        Self { segments: segments.collect(), heads, d, is_joint: kind.is_joint }
    }

    fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed, [0; 3]);
        let kind = random_kind(&mut rng);
        let count = 1 + rng.below(2);
        let segments = (0..count).map(|_| {
            let images = [1, 2, 3, 40][rng.below(4) as usize];
            (images, random_groups(&mut rng, kind, 24))
        });
        let segments = segments.collect();
        let sizes = [1 + rng.below(3), 1 + rng.below(19)].map(|size| size as usize);
        Self::new(kind, segments, sizes)
    }

    fn segments(&self) -> Vec<Segment<'_>> {
        let segments = self.segments.iter().map(|(images, groups, biases)| Segment {
            images: *images,
            groups,
            biases: biases.iter().map(|bias| &bias[..]).collect(),
        });
        segments.collect()
    }

    fn width(&self) -> usize {
        self.heads * self.d
    }

    fn rows(&self, of: fn(ImageRows) -> usize) -> usize {
        self.segments.iter().map(|(images, groups, _)| images * of(groups.rows())).sum()
    }

    /// What is not the usual scale.
    fn scale(&self) -> f32 {
        0.7 * (self.width() as f32).powf(-0.5)
    }

    /// Runs the kernel on `[q, k, v]` and the gradient of the result: the result, then the gradients of
    /// the three, then those of the biases.
    fn run<T: Element>(&self, [q, k, v]: [&[f32]; 3], dcontext: &[f32]) -> Vec<Vec<f32>> {
        let width = self.width();
        let beside = |parts: &[&[f32]]| -> Vec<f32> {
            let rows = 0..parts[0].len() / width;
            let row = |row: usize| parts.iter().flat_map(move |part| &part[row * width..][..width]);
            rows.flat_map(row).copied().collect()
        };
        let (qkv, kv) = (if self.is_joint { beside(&[q, k, v]) } else { vec![] }, beside(&[k, v]));
        fn given<'p, S>(is_joint: bool, [qkv, q, kv]: [&'p [S]; 3]) -> Projections<'p, S> {
            if is_joint { Projections::Joint(qkv) } else { Projections::Separate { q, kv } }
        }
        let projections = given(self.is_joint, [&qkv, q, &kv]);
        let (segments, heads) = (self.segments(), self.heads);
        let attention =
            GatheredAttention { segments: &segments, width, heads, scale: self.scale() };
        let context = forward::<T, f32>(projections, &attention).into_vec();
        // What is stored in bf16 is the same, rounded.
        let stored = [&qkv, q, &kv].map(element::rounded);
        let again = stored.each_ref().map(|values| widened(values));
        let of_wide = given(self.is_joint, again.each_ref().map(Vec::as_slice));
        let of_stored = given(self.is_joint, stored.each_ref().map(|values| &values[..]));
        let expected = element::rounded(&forward::<T, f32>(of_wide, &attention));
        assert!(forward::<T, Bf16>(of_stored, &attention)[..] == expected[..], "in bf16");
        let Gradients { projections, biases } = backward::<T>(projections, &attention, dcontext);
        let part = |values: &[f32], parts: usize, of: usize| -> Vec<f32> {
            let rows = values.chunks_exact(parts * width);
            rows.flat_map(|row| &row[of * width..][..width]).copied().collect()
        };
        let mut found = vec![context];
        match &projections[..] {
            [qkv] => found.extend([0, 1, 2].map(|of| part(qkv, 3, of))),
            [q, kv] => found.extend([q.clone(), part(kv, 2, 0), part(kv, 2, 1)]),
            other => panic!("{} matrices", other.len()),
        }
        found.extend(biases);
        found
    }

    /// The same by the definition, slot by slot; the biases are given.
    fn definition(
        &self,
        [q, k, v]: [&[f64]; 3],
        biases: &[Vec<f64>],
        dcontext: &[f64],
    ) -> Vec<Vec<f64>> {
        let (width, d, scale) = (self.width(), self.d, f64::from(self.scale()));
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|values| vec![0.0; values.len()]);
        let mut context = vec![0.0; dcontext.len()];
        let mut dbiases: Vec<Vec<f64>> = biases.iter().map(|bias| vec![0.0; bias.len()]).collect();
        let zeros = vec![0.0; d];
        let (mut first, mut of_bias) = ([0, 0, 0], 0);
        for (images, groups, own) in &self.segments {
            let rows = groups.rows();
            for _ in 0..*images {
                for (number, table) in groups.tables().iter().enumerate() {
                    for slot in 0..table.query_row.len() {
                        if table.context_row[slot] as usize >= rows.context {
                            continue;
                        }
                        let query = first[0] + table.query_row[slot] as usize;
                        let result = first[2] + table.context_row[slot] as usize;
                        let (group, slot) = (slot / table.queries, slot % table.queries);
                        let keys: Vec<(usize, usize)> = (0..table.keys)
                            .filter(|key| match table.hidden.len() / table.key_row.len() {
                                0 => true,
                                rows => {
                                    let row = group * rows + if rows == 1 { 0 } else { slot };
                                    !table.hidden[row * table.keys + key]
                                }
                            })
                            .map(|key| (key, table.key_row[group * table.keys + key] as usize))
                            .collect();
                        for head in 0..self.heads {
                            let part = |values: &[f64], row: usize| {
                                values[row * width + head * d..][..d].to_vec()
                            };
                            let of_key = |values: &[f64], row: usize| match row < rows.keys {
                                true => part(values, first[1] + row),
                                false => zeros.clone(),
                            };
                            let place =
                                |key: usize| (head * table.queries + slot) * table.keys + key;
                            let bias = |key: usize| match own.is_empty() {
                                true => 0.0,
                                false => biases[of_bias + number][place(key)],
                            };
                            let of_query = part(q, query);
                            let logit = |&(key, row): &(usize, usize)| {
                                scale * dot(&of_query, &of_key(k, row)) + bias(key)
                            };
                            let exps: Vec<f64> = keys.iter().map(|key| logit(key).exp()).collect();
                            let sum: f64 = exps.iter().sum();
                            let d_out = part(dcontext, result);
                            let dp = |row: usize| dot(&d_out, &of_key(v, row));
                            let pairs = keys.iter().zip(&exps);
                            let mean: f64 = pairs.map(|((_, row), e)| e / sum * dp(*row)).sum();
                            for (&(key, row), e) in keys.iter().zip(&exps) {
                                let (p, at) = (e / sum, head * d);
                                let ds = p * (dp(row) - mean);
                                let (of_row, value) = (of_key(k, row), of_key(v, row));
                                for i in 0..d {
                                    context[result * width + at + i] += p * value[i];
                                    dq[query * width + at + i] += scale * ds * of_row[i];
                                    if row < rows.keys {
                                        let to = (first[1] + row) * width + at + i;
                                        dk[to] += scale * ds * of_query[i];
                                        dv[to] += p * d_out[i];
                                    }
                                }
                                if !own.is_empty() {
                                    dbiases[of_bias + number][place(key)] += ds;
                                }
                            }
                        }
                    }
                }
                first = [first[0] + rows.queries, first[1] + rows.keys, first[2] + rows.context];
            }
            of_bias += own.len();
        }
        [vec![context, dq, dk, dv], dbiases].concat()
    }

    /// `[q, k, v]`, and the gradient of the result.
    fn values(&self) -> ([Vec<f32>; 3], Vec<f32>) {
        let counts: [fn(ImageRows) -> usize; 3] =
            [|rows| rows.queries, |rows| rows.keys, |rows| rows.context];
        let [queries, keys, context] = counts.map(|of| self.rows(of) * self.width());
        ([normal(queries, 1), normal(keys, 2), normal(keys, 3)], normal(context, 4))
    }

    fn biases(&self) -> Vec<Vec<f64>> {
        let biases = self.segments.iter().flat_map(|(_, _, biases)| biases);
        biases.map(|bias| wide(bias)).collect()
    }

    fn check<T: Element>(&self, within: f64) {
        let (values, dcontext) = self.values();
        let found = self.run::<T>(values.each_ref().map(Vec::as_slice), &dcontext);
        let values = values.map(|values| rounded::<T>(&values));
        let expected = self.definition(
            values.each_ref().map(Vec::as_slice),
            &self.biases(),
            &rounded::<T>(&dcontext),
        );
        assert_eq!(found.len(), expected.len());
        let names = ["context", "dq", "dk", "dv"].into_iter().chain(std::iter::repeat("dbias"));
        for ((found, expected), name) in found.iter().zip(&expected).zip(names) {
            // Gradients of a bias are sums of products of a probability and of `d` normal values, which cancel: where
            // a query sees one key, all of it.
            let least = if name == "dbias" { 0.1 * (self.d as f64).sqrt() } else { 0.0 };
            let sizes: Vec<f64> = expected.iter().map(|value| value.abs().max(least)).collect();
            let what = format!("{name}, {}: {self:?}", T::NAME);
            assert_near_for(&what, found, expected, &sizes, within);
        }
    }

    fn check_all(&self) {
        self.check::<f32>(5e-6);
        self.check::<Bf16>(0.02);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn against_the_definition(seed in 0u64..1 << 32) {
        let case = Case::random(seed);
        under_each(|_| case.check_all());
    }
}

const PLAIN: Kind = Kind { is_joint: true, is_apart: false, hidden: 0, has_bias: false };

/// Several blocks for the queries of a group, and the usual width of a head.
#[test]
fn whole_images() {
    for has_bias in [false, true] {
        let segments = vec![(1, AttentionGroups::whole(150)), (9, AttentionGroups::whole(37))];
        let case = Case::new(Kind { has_bias, ..PLAIN }, segments, [2, 32]);
        under_each(|_| case.check_all());
    }
}

/// Groups of which some see all keys and others less, one after the other.
#[test]
fn groups_with_fewer_keys() {
    let mut rng = Rng::new(7, [0; 3]);
    for has_bias in [false, true] {
        let kind = Kind { hidden: 1, has_bias, ..PLAIN };
        let groups = random_groups(&mut rng, kind, 90);
        let case = Case::new(kind, vec![(40, groups)], [2, 20]);
        under_each(|_| case.check_all());
    }
}

/// However many threads share the work: images that are cut by groups and by heads, sums over shared
/// keys and over images.
#[test]
fn the_same_bits_on_any_number_of_threads() {
    for seed in 0..12 {
        let case = Case::random(seed);
        let (values, dcontext) = case.values();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let values = values.each_ref().map(Vec::as_slice);
            pool.install(|| case.run::<f32>(values, &dcontext))
        };
        under_each(|_| {
            let one = on(1);
            assert!([2, 5].into_iter().all(|threads| on(threads) == one), "{case:?}");
        });
    }
}

/// The gradients of biases are sums of a few parts of many images.
#[test]
fn images_with_biases_share_sums() {
    let groups = AttentionGroups::whole(3);
    let bias = normal(18, 1);
    let segment = Segment { images: 20, groups: &groups, biases: vec![&bias] };
    let qkv = normal(20 * 3 * 3 * 4, 2);
    let attention = GatheredAttention { segments: &[segment], width: 4, heads: 2, scale: 1.0 };
    let biases = attention.biases();
    let zeros = [0.0; 2];
    let images = attention.images(Projections::Joint(&qkv), &biases, &zeros);
    let mut gradients = vec![vec![0.0; qkv.len()]];
    let dcontext = vec![0.0; 20 * 3 * 4];
    let parts = parts(&attention, images, &dcontext, &mut gradients);
    let sizes: Vec<usize> = parts.iter().map(|part| part.images.len()).collect();
    assert_eq!(sizes, [5, 5, 5, 5]);
}

/// The definition itself.
#[test]
fn the_definition_has_its_gradients() {
    let mut rng = Rng::new(3, [0; 3]);
    for is_joint in [false, true] {
        let kind = Kind { is_joint, is_apart: false, hidden: 2, has_bias: true };
        let groups = random_groups(&mut rng, kind, 9);
        let case = Case::new(kind, vec![(2, groups)], [2, 3]);
        let (values, dcontext) = case.values();
        let (values, dcontext) = (values.map(|values| wide(&values)), wide(&dcontext));
        let biases = case.biases();
        let [q, k, v] = values.each_ref().map(Vec::as_slice);
        let found = case.definition([q, k, v], &biases, &dcontext);
        let loss = |values: [&[f64]; 3], biases: &[Vec<f64>]| {
            dot(&case.definition(values, biases, &dcontext)[0], &dcontext)
        };
        assert_gradient(|q| loss([q, k, v], &biases), q, &found[1]);
        assert_gradient(|k| loss([q, k, v], &biases), k, &found[2]);
        assert_gradient(|v| loss([q, k, v], &biases), v, &found[3]);
        for (number, bias) in biases.iter().enumerate() {
            let with = |bias: &[f64]| {
                let mut biases = biases.clone();
                biases[number] = bias.to_vec();
                loss([q, k, v], &biases)
            };
            assert_gradient(with, bias, &found[4 + number]);
        }
    }
}
