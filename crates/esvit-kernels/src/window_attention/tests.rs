//! Against the definition in f64.

use super::reference::Reference;
use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use crate::testing::{assert_gradient, assert_near, dot, loaded, normal, rounded, stored, wide};
use proptest::prelude::*;

struct Case {
    tokens: usize,
    slots: usize,
    width: usize,
    heads: usize,
    slot_token: Vec<i32>,
    bias_index: Vec<i32>,
    mask: Option<Vec<f32>>,
    /// With its bias.
    qkv: Vec<f32>,
    padding: Vec<f32>,
    bias_table: Vec<f32>,
}

impl Case {
    /// Windows that hold the tokens in any order, with padding in any slot.
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
        let (width, pairs) = (heads * d, slots * slots);
        Self {
            tokens,
            slots,
            width,
            heads,
            slot_token,
            bias_index: (0..pairs).map(|pair| (pair * 7 % 5) as i32).collect(),
            mask: masked.then(|| normal(count * pairs, 1)),
            qkv: normal(images * tokens * 3 * width, 2),
            padding: normal(3 * width, 3),
            bias_table: normal(5 * heads, 4),
        }
    }

    /// All tokens in one window, without a bias.
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

    fn reference<'a>(&'a self, [qkv, padding, bias_table]: [&'a [f64]; 3]) -> Reference<'a> {
        Reference { windows: self.windows(), qkv, padding, bias_table }
    }

    fn attention<T: Element>(&self) -> WindowAttention<'_, T> {
        WindowAttention::new(self.windows(), &self.padding, &self.bias_table)
    }

    /// Compares output and gradients with the definition.
    fn check<T: Element>(&self, within: f64) {
        let what = |name| format!("{name}: {} {} slots, {} heads", T::NAME, self.slots, self.heads);
        let (width, attention) = (self.width, self.attention::<T>());
        let order = attention.order();
        let inputs = [rounded::<T>(&self.qkv), rounded::<T>(&self.padding), wide(&self.bias_table)];
        let reference = self.reference(inputs.each_ref().map(Vec::as_slice));
        let qkv = stored::<T>(&windowed(&self.qkv, 3 * width, order), 3 * width);
        let context = forward(&attention, &qkv, width);
        let context = unwindowed(&loaded(&context, width), width, order);
        assert_near(&what("context"), &context, &reference.forward(), within);

        let dcontext = normal(context.len(), 5);
        let stored_dcontext = stored::<T>(&windowed(&dcontext, width, order), width);
        let mut dqkv = vec![T::from_f32(f32::NAN); qkv.len()];
        let [dpadding, dbias_table] = attention.backward(&qkv, &stored_dcontext, &mut dqkv);
        let dqkv = unwindowed(&loaded(&dqkv, 3 * width), 3 * width, order);
        let expected = reference.backward(&rounded::<T>(&dcontext));
        // Gradients of query, key and value have different sizes, so they are compared one by one.
        for part in 0..3 {
            let found: Vec<f32> = columns(&dqkv, 3 * width, part * width, width);
            let expected = columns(&expected[0], 3 * width, part * width, width);
            assert_near(&what(["dq", "dk", "dv"][part]), &found, &expected, within);
        }
        assert_near(&what("dpadding"), &dpadding, &expected[1], within);
        assert_near(&what("dbias_table"), &dbias_table, &expected[2], within);
    }

    fn check_all(&self) {
        self.check::<f32>(5e-6);
        self.check::<Bf16>(0.02);
    }
}

/// Some columns of all rows.
fn columns<V: Copy>(values: &[V], width: usize, first: usize, count: usize) -> Vec<V> {
    values.chunks_exact(width).flat_map(|row| row[first..first + count].to_vec()).collect()
}

/// Rows of `width` of all images, taken from the order of tokens into that of windows.
fn windowed(values: &[f32], width: usize, order: &[u32]) -> Vec<f32> {
    let images = values.chunks_exact(order.len() * width);
    images
        .flat_map(|image| order.iter().flat_map(|&t| image[t as usize * width..][..width].to_vec()))
        .collect()
}

/// The inverse of [`windowed`].
fn unwindowed(values: &[f32], width: usize, order: &[u32]) -> Vec<f32> {
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(at, &token)| place[token as usize] = at as u32);
    windowed(values, width, &place)
}

/// All windows at once, and window by window, which must not differ.
fn forward<T: Element>(attention: &WindowAttention<'_, T>, qkv: &[T], width: usize) -> Vec<T> {
    let (row, row3) = (padded_row_len::<T>(width), padded_row_len::<T>(3 * width));
    let rows = qkv.len() / row3;
    let mut context = vec![T::from_f32(f32::NAN); rows * row];
    let windows = rows / attention.order().len() * attention.windows();
    attention.forward(0..windows, true, qkv, &mut context);
    for window in 0..windows {
        let of = attention.rows(window..window + 1);
        let mut own = vec![T::from_f32(f32::NAN); of.len() * row];
        let qkv = &qkv[of.start * row3..of.end * row3];
        attention.forward(window..window + 1, false, qkv, &mut own);
        assert_eq!(loaded(&own, width), loaded(&context[of.start * row..of.end * row], width));
    }
    context
}

#[test]
fn gradients_of_the_definition() {
    let case = Case::new(2, 5, 2, 2, 3, true);
    let inputs = [&case.qkv, &case.padding, &case.bias_table].map(|values| wide(values));
    let dcontext = wide(&normal(case.qkv.len() / 3, 5));
    let lens = inputs.each_ref().map(Vec::len);
    let split = |all: &[f64]| -> f64 {
        let (qkv, rest) = all.split_at(lens[0]);
        let (padding, bias_table) = rest.split_at(lens[1]);
        dot(&case.reference([qkv, padding, bias_table]).forward(), &dcontext)
    };
    let reference = case.reference(inputs.each_ref().map(Vec::as_slice));
    assert_gradient(split, &inputs.concat(), &reference.backward(&dcontext).concat());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn forward_and_gradients(
        images in 1usize..6, slots in 1usize..19, count in 1usize..3,
        heads in 1usize..4, d in 1usize..18, masked: bool,
    ) {
        let case = Case::new(images, slots, count, heads, d, masked);
        under_each(|_| case.check_all());
    }
}

/// Windows of 7 x 7, windows wider than a panel and of several blocks of queries, and heads wider than
/// a register.
#[test]
fn large_windows() {
    for (slots, d) in [(49, 32), (65, 33), (131, 8)] {
        let case = Case::new(1, slots, 2, 2, d, true);
        under_each(|_| case.check_all());
    }
}

/// More windows than tasks: gradients of table and padding are summed over windows of a task and over
/// tasks; what a window before it, in the same task, has left behind does not count.
#[test]
fn many_windows() {
    let mut padding_alone = Case::new(2 * TASKS, 2, 2, 2, 3, true);
    padding_alone.tokens = 2;
    padding_alone.slot_token = vec![0, 1, 2, 2];
    padding_alone.qkv.truncate(2 * TASKS * 2 * 3 * padding_alone.width);
    let mixed = Case::new(2 * TASKS + 3, 4, 3, 2, 3, true);
    under_each(|_| {
        padding_alone.check_all();
        mixed.check_all();
    });
}

/// Without a bias, of sizes around a block of queries.
#[test]
fn plain_attention() {
    for (images, tokens, heads, d) in [(2, 1, 1, 3), (1, 63, 3, 4), (3, 64, 1, 16), (1, 129, 2, 5)]
    {
        let case = Case::plain(images, tokens, heads, d);
        under_each(|_| case.check_all());
    }
}

/// A mask of -100, as Swin uses, and one that is below all exponentials, leave nothing of a key.
#[test]
fn masked_keys_do_not_count() {
    for value in [-100.0, f32::NEG_INFINITY] {
        let mut case = Case::new(1, 6, 1, 1, 4, true);
        let mut masked = case.mask.take().unwrap();
        for query in 0..6 {
            masked[query * 6 + 2] = value;
        }
        case.mask = Some(masked);
        let mut moved = case.qkv.clone();
        let token = case.slot_token[2] as usize;
        moved[token * 12 + 4..token * 12 + 12].fill(1.5);
        under_each(|_| {
            let attention = case.attention::<f32>();
            let [a, b] = [&case.qkv, &moved].map(|qkv| {
                let qkv = windowed(qkv, 12, attention.order());
                forward(&attention, &qkv, 4)
            });
            // The masked token is a query too, whose query did not change.
            assert_near("masked", &a, &wide(&b), 1e-6);
        });
    }
}

/// A query that is not finite spoils its own row, a key that is NaN all rows.
#[test]
fn non_finite_values_propagate() {
    let (tokens, d) = (20, 4);
    let case = Case::plain(1, tokens, 1, d);
    under_each(|_| {
        for (value, at, spoilt) in
            [(f32::NAN, 0, 3..4), (f32::INFINITY, 0, 3..4), (f32::NAN, d, 0..tokens)]
        {
            let mut qkv = case.qkv.clone();
            qkv[3 * 3 * d + at] = value;
            let mut context = vec![0.0; tokens * d];
            case.attention().forward(0..1, true, &qkv, &mut context);
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
    case.attention::<f32>();
}
