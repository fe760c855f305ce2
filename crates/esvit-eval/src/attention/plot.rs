//! Plot of attention entropy and head diversity by block.

use super::BlockStatistics;
use esvit_draw::{Anchor, Drawing, color};

/// Colors of the first and the second network.
const COLORS: [&str; 2] = ["#1f6fb4", "#e0691a"];
const WIDTH: f64 = 760.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 20.0;
/// Top and height of the two subplots, below the legend.
const ENTROPY: [f64; 2] = [16.0, 260.0];
const DIVERSITY: [f64; 2] = [318.0, 100.0];
const BOTTOM: f64 = 62.0;
const LINE: f64 = 20.0;
/// Share of a block's width for the dots of its heads.
const SPREAD: f64 = 0.62;

/// Plots, for one or two named networks, the entropy of each head (dots, sorted within a block),
/// the mean and the largest possible entropy, and below the diversity of heads.
pub fn plot(networks: &[(&str, &[BlockStatistics])]) -> Drawing {
    let blocks = networks.iter().map(|(_, blocks)| blocks.len()).max().unwrap_or(0);
    let legend = LINE * networks.len() as f64 + 14.0;
    let height = legend + DIVERSITY[0] + DIVERSITY[1] + BOTTOM;
    let mut drawing = Drawing::new(WIDTH, height);
    let all = || networks.iter().flat_map(|(_, blocks)| blocks.iter());
    let largest = all().map(|block| block.largest_entropy).fold(1.0, f64::max);
    let diverse = all().filter_map(|block| block.diversity).fold(0.01, f64::max);
    let entropy = Axes::new(blocks, legend, ENTROPY, 1.04 * largest);
    let diversity = Axes::new(blocks, legend, DIVERSITY, 1.1 * diverse);

    entropy.draw(&mut drawing, "entropy (bits)");
    diversity.draw(&mut drawing, "diversity (bits)");
    diversity.blocks(&mut drawing, networks.first().map_or(&[], |(_, blocks)| blocks), entropy.top);
    for (index, (name, blocks)) in networks.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        label(&mut drawing, index, name, color);
        let at = |axes: &Axes, value: fn(&BlockStatistics) -> Option<f64>| -> Vec<[f64; 2]> {
            let points = blocks.iter().enumerate();
            points.filter_map(|(block, b)| Some(axes.point(block, 0.0, value(b)?))).collect()
        };
        drawing.polyline(&at(&entropy, |block| Some(block.largest_entropy)), "#c3c9d0", 1.5);
        let side = [index as f64, networks.len() as f64];
        heads(&mut drawing, &entropy, blocks, side, color);
        drawing.polyline(&at(&entropy, |block| Some(block.entropy)), color, 2.0);
        let points = at(&diversity, |block| block.diversity);
        drawing.polyline(&points, color, 2.0);
        points.iter().for_each(|&point| drawing.dot(point, 3.0, color));
    }
    drawing
}

/// Dots of all heads, those of network `index` of `count` in their part of a block's width.
fn heads(
    drawing: &mut Drawing,
    axes: &Axes,
    blocks: &[BlockStatistics],
    [index, count]: [f64; 2],
    color: &str,
) {
    for (block, statistics) in blocks.iter().enumerate() {
        let mut entropies: Vec<f64> = statistics.heads.iter().map(|head| head.entropy).collect();
        entropies.sort_by(f64::total_cmp);
        let heads = entropies.len() as f64;
        for (rank, entropy) in entropies.into_iter().enumerate() {
            let place = (index + (rank as f64 + 0.5) / heads) / count - 0.5;
            let [x, y] = axes.point(block, SPREAD * place, entropy);
            drawing.element(format_args!(
                "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"2.75\" fill=\"{color}\" \
                 fill-opacity=\"0.55\"/>"
            ));
        }
    }
}

/// Legend entry of a network.
fn label(drawing: &mut Drawing, index: usize, name: &str, color: &str) {
    let y = 18.0 + LINE * index as f64;
    drawing.line([LEFT, y], [LEFT + 22.0, y], color, 2.0);
    drawing.dot([LEFT + 11.0, y], 3.0, color);
    drawing.text([LEFT + 30.0, y + 4.0], name, 12.0, color::INK, Anchor::Start);
    if index == 0 {
        let right = WIDTH - RIGHT;
        drawing.line([right - 122.0, y], [right - 100.0, y], "#c3c9d0", 1.5);
        drawing.text([right, y + 4.0], "largest possible", 11.0, color::FAINT, Anchor::End);
    }
}

/// A subplot: blocks on x, values on y from 0.
struct Axes {
    blocks: usize,
    top: f64,
    height: f64,
    largest: f64,
}

impl Axes {
    fn new(blocks: usize, legend: f64, [top, height]: [f64; 2], largest: f64) -> Self {
        Self { blocks, top: legend + top, height, largest }
    }

    fn block_width(&self) -> f64 {
        (WIDTH - LEFT - RIGHT) / self.blocks.max(1) as f64
    }

    /// Position of a block's value; `aside` is an offset as a share of the block's width.
    fn point(&self, block: usize, aside: f64, value: f64) -> [f64; 2] {
        let x = LEFT + (block as f64 + 0.5 + aside) * self.block_width();
        [x, self.top + self.height * (1.0 - value / self.largest)]
    }

    /// Grid lines, tick labels and title of the y axis.
    fn draw(&self, drawing: &mut Drawing, title: &str) {
        let step = round_step(self.largest / if self.height > 200.0 { 6.0 } else { 4.0 });
        let values = (0..).map(|tick| (tick, f64::from(tick) * step));
        for (tick, value) in values.take_while(|(_, value)| *value <= self.largest) {
            let [_, y] = self.point(0, 0.0, value);
            let line = if tick == 0 { color::FAINT } else { "#eceef1" };
            drawing.line([LEFT, y], [WIDTH - RIGHT, y], line, 1.0);
            let decimals = (-step.log10().floor()).max(0.0) as usize;
            let number = format!("{value:.decimals$}");
            drawing.text([LEFT - 7.0, y + 4.0], &number, 11.0, color::FAINT, Anchor::End);
        }
        let (x, y) = (14.0, self.top + self.height / 2.0);
        drawing.element(format_args!(
            "<text x=\"{x}\" y=\"{y:.2}\" font-size=\"12\" fill=\"{}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 {x} {y:.2})\">{title}</text>",
            color::INK
        ));
    }

    /// Tick labels of the x axis, and boundaries of stages from `top` down.
    fn blocks(&self, drawing: &mut Drawing, blocks: &[BlockStatistics], top: f64) {
        let bottom = self.top + self.height;
        let every = self.blocks.div_ceil(26).max(1);
        for block in (0..self.blocks).step_by(every) {
            let [x, _] = self.point(block, 0.0, 0.0);
            let number = block.to_string();
            drawing.text([x, bottom + 17.0], &number, 11.0, color::FAINT, Anchor::Middle);
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        for stage in blocks.chunk_by(|a, b| a.position.stage == b.position.stage) {
            let [first, last] = [&stage[0], &stage[stage.len() - 1]].map(|b| b.position.block);
            if first > 0 {
                let [x, _] = self.point(first, -0.5, 0.0);
                drawing.line([x, top], [x, bottom], "#d5dae0", 1.0);
            }
            let x = (self.point(first, 0.0, 0.0)[0] + self.point(last, 0.0, 0.0)[0]) / 2.0;
            let name = format!("stage {}", stage[0].position.stage);
            drawing.text([x, top - 4.0], &name, 11.0, color::FAINT, Anchor::Middle);
        }
        drawing.text([middle, bottom + 38.0], "block", 12.0, color::INK, Anchor::Middle);
    }
}

/// Rounds up to 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|s| s * power).find(|&s| s >= step).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (step, expected) in [(0.7, 1.0), (1.0, 1.0), (1.1, 2.0), (0.03, 0.05), (6.0, 10.0)] {
            assert!((round_step(step) - expected).abs() < 1e-12, "{step}");
        }
    }

    fn block(block: usize, entropies: &[f64]) -> BlockStatistics {
        let heads = entropies.iter().enumerate().map(|(head, &entropy)| {
            super::super::HeadStatistics { head, entropy, entropy_std: None, share: None }
        });
        BlockStatistics {
            position: super::super::BlockPosition { block, stage: 1 + block, block_in_stage: 0 },
            map: [4, 4],
            window: Some(4),
            shift: Some(0),
            entropy: 2.0,
            largest_entropy: 4.0,
            share: Some(0.5),
            diversity: Some(0.1),
            padding_mass: 0.0,
            prefix_mass: 0.0,
            heads: heads.collect(),
        }
    }

    #[test]
    fn larger_values_stand_higher_and_later_blocks_to_the_right() {
        let axes = Axes::new(2, 5.0, [10.0, 100.0], 4.0);
        let [[first, low], [second, high]] = [axes.point(0, 0.0, 0.0), axes.point(1, 0.0, 4.0)];
        assert_eq!((low, high), (115.0, 15.0));
        assert!(first < second && second - first == axes.block_width());
    }

    #[test]
    fn heads_stand_side_by_side_by_their_entropy() {
        let axes = Axes::new(1, 0.0, ENTROPY, 4.0);
        let mut drawing = Drawing::new(WIDTH, 400.0);
        heads(&mut drawing, &axes, &[block(0, &[3.0, 1.0, 2.0])], [0.0, 1.0], "#123456");
        let svg = drawing.svg();
        let numbers = |key: &str| -> Vec<f64> {
            svg.split(&format!("{key}=\""))
                .skip(1)
                .map(|part| part.split('"').next().unwrap().parse().unwrap())
                .collect()
        };
        let (x, y) = (numbers("cx"), numbers("cy"));
        assert!(x.len() == 3 && x.is_sorted_by(|a, b| a < b), "{x:?}");
        assert!(y.is_sorted_by(|a, b| a > b), "{y:?}");
    }

    #[test]
    fn two_networks_and_all_stages_are_named() {
        let blocks = [block(0, &[1.0, 2.0]), block(1, &[1.5])];
        let svg = plot(&[("one", &blocks), ("two", &blocks[..1])]).svg();
        for part in
            [">one<", ">two<", ">stage 1<", ">stage 2<", ">entropy (bits)<", ">largest possible<"]
        {
            assert!(svg.contains(part), "{part}");
        }
        // A dot for every head, and one for the diversity of a block, of the legend too.
        assert_eq!(svg.matches("<circle").count(), 3 + 2 + 3 + 2);
    }
}
