//! Window attention by the definition, in f64, slot by slot.

use super::Windows;
use crate::testing::dot;

pub(crate) struct Reference<'a> {
    pub(crate) windows: Windows<'a>,
    /// With its bias, `[images * tokens, 3 C]`, in the order of tokens.
    pub(crate) qkv: &'a [f64],
    /// Query, key and value of padding, `[3 C]`.
    pub(crate) padding: &'a [f64],
    pub(crate) bias_table: &'a [f64],
}

/// A head in a window of an image.
#[derive(Clone, Copy)]
struct At {
    image: usize,
    window: usize,
    head: usize,
}

impl Reference<'_> {
    fn all(&self) -> impl Iterator<Item = At> + use<> {
        let images = self.qkv.len() / self.padding.len() / self.windows.tokens;
        let (windows, heads) = (self.windows.windows(), self.windows.heads);
        (0..images).flat_map(move |image| {
            (0..windows)
                .flat_map(move |window| (0..heads).map(move |head| At { image, window, head }))
        })
    }

    fn scale(&self) -> f64 {
        (self.windows.head_width() as f64).powf(-0.5)
    }

    /// Row of the token in a slot; none for padding.
    fn row(&self, at: At, slot: usize) -> Option<usize> {
        let token = self.windows.slot_token[at.window * self.windows.slots + slot] as usize;
        (token < self.windows.tokens).then_some(at.image * self.windows.tokens + token)
    }

    /// Columns of query, key or value (`part` 0, 1, 2) of a head.
    fn columns(&self, at: At, part: usize) -> std::ops::Range<usize> {
        let d = self.windows.head_width();
        let first = part * self.windows.width + at.head * d;
        first..first + d
    }

    fn part(&self, at: At, slot: usize, part: usize) -> &[f64] {
        let width = self.padding.len();
        let row = self.row(at, slot).map_or(self.padding, |row| &self.qkv[row * width..][..width]);
        &row[self.columns(at, part)]
    }

    fn bias_place(&self, at: At, query: usize, key: usize) -> Option<usize> {
        let pair = query * self.windows.slots + key;
        let row = self.windows.bias_index.get(pair)?;
        Some(*row as usize * self.windows.heads + at.head)
    }

    /// `P` of a query.
    fn weights(&self, at: At, query: usize) -> Vec<f64> {
        let n = self.windows.slots;
        let logit = |key: usize| {
            let dot = dot(self.part(at, query, 0), self.part(at, key, 1));
            let bias = self.bias_place(at, query, key).map_or(0.0, |at| self.bias_table[at]);
            let mask = self.windows.mask.map_or(0.0, |m| m[(at.window * n + query) * n + key]);
            (dot * self.scale() + bias + f64::from(mask)).exp()
        };
        let exps: Vec<f64> = (0..n).map(logit).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|e| e / sum).collect()
    }

    /// Context `[images * tokens, C]`.
    pub(crate) fn forward(&self) -> Vec<f64> {
        let width = self.windows.width;
        let mut context = vec![0.0; self.qkv.len() / 3];
        for at in self.all() {
            for query in 0..self.windows.slots {
                let Some(row) = self.row(at, query) else { continue };
                let to = &mut context[row * width..][..width][self.columns(at, 0)];
                for (key, p) in self.weights(at, query).into_iter().enumerate() {
                    to.iter_mut().zip(self.part(at, key, 2)).for_each(|(to, v)| *to += p * v);
                }
            }
        }
        context
    }

    /// Gradients of `qkv`, `padding` and the bias table.
    pub(crate) fn backward(&self, dcontext: &[f64]) -> [Vec<f64>; 3] {
        let (n, width) = (self.windows.slots, self.windows.width);
        let [mut dqkv, mut dpadding, mut dbias_table] =
            [self.qkv, self.padding, self.bias_table].map(|values| vec![0.0; values.len()]);
        let mut add = |at: At, slot: usize, part: usize, times: f64, values: &[f64]| {
            let row = match self.row(at, slot) {
                Some(row) => &mut dqkv[row * 3 * width..][..3 * width],
                None => &mut dpadding[..],
            };
            let to = &mut row[self.columns(at, part)];
            to.iter_mut().zip(values).for_each(|(to, value)| *to += times * value);
        };
        for at in self.all() {
            for query in 0..n {
                let Some(row) = self.row(at, query) else { continue };
                let d_out = &dcontext[row * width..][..width][self.columns(at, 0)];
                let p = self.weights(at, query);
                let dp: Vec<f64> = (0..n).map(|key| dot(d_out, self.part(at, key, 2))).collect();
                let mean = dot(&p, &dp);
                for key in 0..n {
                    let ds = p[key] * (dp[key] - mean);
                    add(at, key, 2, p[key], d_out);
                    add(at, query, 0, ds * self.scale(), self.part(at, key, 1));
                    add(at, key, 1, ds * self.scale(), self.part(at, query, 0));
                    if let Some(place) = self.bias_place(at, query, key) {
                        dbias_table[place] += ds;
                    }
                }
            }
        }
        [dqkv, dpadding, dbias_table]
    }
}
