//! Against the definition, pair by pair in f64, and the gradients against differences of it.

use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use proptest::prelude::*;

struct Case {
    images: usize,
    tokens: usize,
    slots: usize,
    width: usize,
    heads: usize,
    slot_token: Vec<i32>,
    bias_index: Vec<i32>,
    mask: Option<Vec<f32>>,
    qkv: Vec<f32>,
    bias: Vec<f32>,
    bias_table: Vec<f32>,
}

impl Case {
    /// Windows that hold the tokens in any order, with padding at any place.
    fn new(
        images: usize,
        slots: usize,
        count: usize,
        heads: usize,
        d: usize,
        masked: bool,
    ) -> Self {
        let mut rng = Rng::new(11, [slots as u64, count as u64, d as u64]);
        let padding = if count > 1 { slots / 2 } else { 0 };
        let tokens = slots * count - padding;
        let mut slot_token: Vec<i32> =
            (0..slots * count).map(|slot| slot.min(tokens) as i32).collect();
        rng.shuffle(&mut slot_token);
        let width = heads * d;
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
        let pairs = slots * slots;
        Self {
            images,
            tokens,
            slots,
            width,
            heads,
            slot_token,
            bias_index: (0..pairs).map(|pair| (pair % 5) as i32).collect(),
            mask: masked.then(|| values(count * pairs)),
            qkv: values(images * tokens * 3 * width),
            bias: values(3 * width),
            bias_table: values(5 * heads),
        }
    }

    /// All tokens in one window, without a table.
    fn plain(images: usize, tokens: usize, heads: usize, d: usize) -> Self {
        let mut case = Self::new(images, tokens, 1, heads, d, false);
        case.bias_index.clear();
        case.bias_table.clear();
        case
    }

    fn windows(&self) -> Windows<'_> {
        Windows {
            tokens: self.tokens,
            slots: self.slots,
            width: self.width,
            heads: self.heads,
            slot_token: &self.slot_token,
            bias_index: &self.bias_index,
            mask: self.mask.as_deref(),
        }
    }

    /// What comes out, by the definition, for arguments in f64.
    fn definition(&self, [qkv, bias, bias_table]: [&[f64]; 3]) -> Vec<f64> {
        let (n, d, width) = (self.slots, self.width / self.heads, self.width);
        let mut context = vec![0.0; self.images * self.tokens * width];
        for image in 0..self.images {
            for (window, slots) in self.slot_token.chunks_exact(n).enumerate() {
                for head in 0..self.heads {
                    let value = |part: usize, slot: usize, i: usize| {
                        let at = part * width + head * d + i;
                        let token = slots[slot] as usize;
                        let own = if token < self.tokens {
                            qkv[(image * self.tokens + token) * 3 * width + at]
                        } else {
                            0.0
                        };
                        own + bias[at]
                    };
                    for (query, &token) in slots.iter().enumerate() {
                        let weights: Vec<f64> = (0..n)
                            .map(|key| {
                                let dot: f64 =
                                    (0..d).map(|i| value(0, query, i) * value(1, key, i)).sum();
                                let pair = query * n + key;
                                let mask = self
                                    .mask
                                    .as_ref()
                                    .map_or(0.0, |m| f64::from(m[window * n * n + pair]));
                                let position = self.bias_index.get(pair).map_or(0.0, |&row| {
                                    bias_table[row as usize * self.heads + head]
                                });
                                (dot / (d as f64).sqrt() + position + mask).exp()
                            })
                            .collect();
                        let total: f64 = weights.iter().sum();
                        let token = token as usize;
                        if token < self.tokens {
                            for i in 0..d {
                                context[(image * self.tokens + token) * width + head * d + i] =
                                    (0..n).map(|key| weights[key] * value(2, key, i)).sum::<f64>()
                                        / total;
                            }
                        }
                    }
                }
            }
        }
        context
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Rows of `width` in the stored type.
fn stored<T: Element>(values: &[f32], width: usize) -> Vec<T> {
    let row = padded_row_len::<T>(width);
    let mut rows = vec![T::default(); values.len() / width * row];
    for (to, from) in rows.chunks_exact_mut(row).zip(values.chunks_exact(width)) {
        crate::gemm::convert(from, None, to);
    }
    rows
}

fn loaded<T: Element>(rows: &[T], width: usize) -> Vec<f32> {
    let rows = rows.chunks_exact(padded_row_len::<T>(width));
    rows.flat_map(|row| row[..width].iter().map(|value| value.to_f32())).collect()
}

/// Rows of `width` of all images, taken from the order of tokens into that of windows.
fn windowed(values: &[f32], width: usize, order: &[u32]) -> Vec<f32> {
    let images = values.chunks_exact(order.len() * width);
    images.flat_map(|image| order.iter().flat_map(|&t| row(image, width, t as usize))).collect()
}

/// The inverse of [`windowed`].
fn unwindowed(values: &[f32], width: usize, order: &[u32]) -> Vec<f32> {
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(at, &token)| place[token as usize] = at as u32);
    windowed(values, width, &place)
}

fn row(rows: &[f32], width: usize, at: usize) -> Vec<f32> {
    rows[at * width..][..width].to_vec()
}

/// Mixes by all windows at once, and window by window, which must not differ.
fn forward<T: Element>(
    window_attention: &WindowAttention<'_, T>,
    qkv: &[T],
    width: usize,
) -> Vec<T> {
    let (row, row3) = (padded_row_len::<T>(width), padded_row_len::<T>(3 * width));
    let rows = qkv.len() / row3;
    let mut context = vec![T::from_f32(f32::NAN); rows * row];
    let windows = rows / window_attention.order().len() * window_attention.windows();
    window_attention.forward(0..windows, true, qkv, &mut context);
    for window in 0..windows {
        let of = window_attention.rows(window..window + 1);
        let mut own = vec![T::from_f32(f32::NAN); of.len() * row];
        let qkv = &qkv[of.start * row3..of.end * row3];
        window_attention.forward(window..window + 1, false, qkv, &mut own);
        assert_eq!(loaded(&own, width), loaded(&context[of.start * row..of.end * row], width));
    }
    context
}

/// Compares values and gradients with the definition and differences of it.
fn check<T: Element>(case: &Case, within: f64) {
    let (windows, width) = (case.windows(), case.width);
    let arguments = [wide(&case.qkv), wide(&case.bias), wide(&case.bias_table)];
    let call = |arguments: &[Vec<f64>; 3]| case.definition([0, 1, 2].map(|i| &arguments[i][..]));
    let biased: Vec<f32> =
        case.qkv.iter().enumerate().map(|(i, v)| v + case.bias[i % (3 * width)]).collect();
    let window_attention = WindowAttention::<T>::new(windows, &case.bias, &case.bias_table);
    let qkv = stored::<T>(&windowed(&biased, 3 * width, window_attention.order()), 3 * width);
    let rows = case.images * case.tokens;
    let context = forward(&window_attention, &qkv, width);
    let context = unwindowed(&loaded(&context, width), width, window_attention.order());
    for (found, expected) in context.iter().zip(call(&arguments)) {
        assert!((f64::from(*found) - expected).abs() < within, "{found} {expected}");
    }

    let mut rng = Rng::new(5, [0; 3]);
    let dcontext: Vec<f32> = context.iter().map(|_| rng.normal() as f32).collect();
    let mut dqkv = vec![T::from_f32(f32::NAN); qkv.len()];
    let stored_dcontext = stored::<T>(&windowed(&dcontext, width, window_attention.order()), width);
    let [dpadding, dbias_table] = window_attention.backward(&qkv, &stored_dcontext, &mut dqkv);
    let dqkv = unwindowed(&loaded(&dqkv, 3 * width), 3 * width, window_attention.order());
    let mut dbias = dpadding;
    for row in dqkv.chunks_exact(3 * width) {
        dbias.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    for (argument, gradient) in [dqkv, dbias, dbias_table].iter().enumerate() {
        for at in (0..gradient.len()).step_by(gradient.len().div_ceil(5).max(1)) {
            let moved = |h: f64| -> f64 {
                let mut arguments = arguments.clone();
                arguments[argument][at] += h;
                let context = call(&arguments);
                context.iter().zip(&dcontext).map(|(m, &g)| m * f64::from(g)).sum()
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let found = f64::from(gradient[at]);
            let scale = expected.abs().max(1.0) * (rows as f64).sqrt();
            assert!(
                (found - expected).abs() < 5.0 * within * scale,
                "{argument}: {found} {expected}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn forward_and_gradients(
        images in 1usize..6, slots in 1usize..19, count in 1usize..3,
        heads in 1usize..3, d in 1usize..18, masked: bool,
    ) {
        let case = Case::new(images, slots, count, heads, d, masked);
        under_each(|_| {
            check::<f32>(&case, 2e-5);
            check::<Bf16>(&case, 0.05);
        });
    }
}

/// Windows of 7 by 7, wider than one strip and of several blocks of queries, and a head wider than
/// a register.
#[test]
fn large_windows() {
    for (slots, d) in [(49, 32), (65, 33), (131, 8)] {
        let case = Case::new(1, slots, 2, 1, d, true);
        under_each(|_| {
            check::<f32>(&case, 2e-5);
            check::<Bf16>(&case, 0.05);
        });
    }
}

/// What a window before it, in the same task, has left behind does not count.
#[test]
fn a_window_of_padding_alone() {
    let images = 2 * TASKS;
    let mut case = Case::new(images, 2, 2, 2, 3, true);
    case.tokens = 2;
    case.slot_token = vec![0, 1, 2, 2];
    case.qkv.truncate(images * 2 * 3 * case.width);
    under_each(|_| {
        check::<f32>(&case, 2e-5);
        check::<Bf16>(&case, 0.05);
    });
}

/// Without a table, of sizes around a block of queries.
#[test]
fn plain_attention() {
    for (images, tokens, heads, d) in [(2, 1, 1, 3), (1, 63, 3, 4), (3, 64, 1, 16), (1, 129, 2, 5)]
    {
        let case = Case::plain(images, tokens, heads, d);
        under_each(|_| {
            check::<f32>(&case, 2e-5);
            check::<Bf16>(&case, 0.05);
        });
    }
}

/// A query that is not finite spoils its own row, a key that is no number all rows.
#[test]
fn what_is_not_finite_is_seen() {
    let (tokens, d) = (20, 4);
    let case = Case::plain(1, tokens, 1, d);
    under_each(|_| {
        for (value, at, spoilt) in
            [(f32::NAN, 0, 3..4), (f32::INFINITY, 0, 3..4), (f32::NAN, d, 0..tokens)]
        {
            let mut qkv = case.qkv.clone();
            qkv[3 * 3 * d + at] = value;
            let window_attention =
                WindowAttention::new(case.windows(), &case.bias, &case.bias_table);
            let mut context = vec![0.0; tokens * d];
            window_attention.forward(0..1, true, &qkv, &mut context);
            for (token, row) in context.chunks_exact(d).enumerate() {
                let seen = row.iter().all(|value| value.is_nan());
                assert_eq!(seen, spoilt.contains(&token), "{value} {at} {token}");
            }
        }
    });
}

#[test]
#[should_panic(expected = "every token has a slot")]
fn a_token_cannot_be_missing() {
    let mut case = Case::new(1, 4, 1, 1, 4, false);
    case.slot_token[0] = 4;
    check::<f32>(&case, 1.0);
}
