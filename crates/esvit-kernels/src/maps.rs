//! Square filters that move over token maps, channels last.

/// Images whose maps have one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maps {
    /// Number of images.
    pub images: usize,
    /// Height and width of their maps.
    pub size: [usize; 2],
}

impl Maps {
    /// Tokens of an image.
    pub fn tokens(&self) -> usize {
        self.size[0] * self.size[1]
    }
}

/// A square filter that moves over maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Channels of the maps, C.
    pub channels: usize,
    /// Height and width of the filter.
    pub side: usize,
    /// Steps between two positions.
    pub stride: usize,
    /// Width of the margin around the maps.
    pub padding: usize,
}

impl Filter {
    /// Number of positions down and across a map of this size.
    pub fn positions(&self, size: [usize; 2]) -> [usize; 2] {
        size.map(|side| {
            let rest = (side + 2 * self.padding).checked_sub(self.side);
            // Padding alone is no map.
            rest.filter(|_| side > 0).map_or(0, |rest| rest / self.stride + 1)
        })
    }

    /// The maps of what the filter gives.
    pub fn output(&self, maps: &Maps) -> Maps {
        Maps { images: maps.images, size: self.positions(maps.size) }
    }

    /// Number of positions on all maps.
    pub fn positions_of_all(&self, maps: &[Maps]) -> usize {
        maps.iter().map(|maps| maps.images * self.output(maps).tokens()).sum()
    }

    /// Whether it sees one token at every position, each once.
    pub fn is_pointwise(&self) -> bool {
        (self.side, self.stride, self.padding) == (1, 1, 0)
    }

    /// Values under the filter.
    pub fn values(&self) -> usize {
        self.side * self.side * self.channels
    }

    /// `visit(to, from, len)` for all runs of values of a map that lie under the filter at a
    /// position: `len` values of the map from `from` on are those of the filter from `to` on, in the
    /// order row, column, channel.
    pub(crate) fn runs(
        &self,
        [height, width]: [usize; 2],
        [down, across]: [usize; 2],
        mut visit: impl FnMut(usize, usize, usize),
    ) {
        let Self { channels, side, stride, padding } = *self;
        // In columns of the padded map.
        let left = across * stride;
        let (first, end) = (left.max(padding), (left + side).min(width + padding));
        if first >= end {
            return;
        }
        for row in 0..side {
            let from = down * stride + row;
            if (padding..height + padding).contains(&from) {
                let to = row * side + first - left;
                let from = (from - padding) * width + first - padding;
                visit(to * channels, from * channels, (end - first) * channels);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every value of a map that meets one of the filter: `[place in the maps, place in the filter,
    /// position]`, positions counted over all images.
    pub(crate) fn meetings(maps: &Maps, filter: &Filter) -> Vec<[usize; 3]> {
        let ([height, width], [down, across]) = (maps.size, filter.positions(maps.size));
        let mut found = Vec::new();
        for position in 0..maps.images * down * across {
            let (image, place) = (position / (down * across), position % (down * across));
            let corner = [place / across, place % across].map(|at| at * filter.stride);
            for tap in 0..filter.side * filter.side {
                let y = (corner[0] + tap / filter.side).checked_sub(filter.padding);
                let x = (corner[1] + tap % filter.side).checked_sub(filter.padding);
                let (Some(y), Some(x)) = (y, x) else { continue };
                if y >= height || x >= width {
                    continue;
                }
                for channel in 0..filter.channels {
                    let from = ((image * height + y) * width + x) * filter.channels + channel;
                    found.push([from, tap * filter.channels + channel, position]);
                }
            }
        }
        found
    }

    #[test]
    fn positions_by_hand() {
        let filter = |side, stride, padding| Filter { channels: 1, side, stride, padding };
        assert_eq!(filter(7, 2, 3).positions([224, 225]), [112, 113]);
        assert_eq!(filter(3, 2, 1).positions([112, 1]), [56, 1]);
        assert_eq!(filter(2, 2, 0).positions([7, 1]), [3, 0]);
        assert_eq!(filter(1, 2, 0).positions([7, 8]), [4, 4]);
        assert_eq!(filter(7, 4, 2).positions([2, 3]), [0, 1]);
        assert_eq!(filter(3, 2, 2).positions([0, 1]), [0, 2]);
    }

    #[test]
    fn runs_are_all_that_meet() {
        for (size, side, stride, padding) in
            [([4, 5], 3, 1, 1), ([5, 4], 3, 2, 1), ([7, 6], 2, 2, 0), ([1, 2], 7, 2, 3)]
        {
            let filter = Filter { channels: 2, side, stride, padding };
            let [down, across] = filter.positions(size);
            let mut found = Vec::new();
            for position in 0..down * across {
                let place = [position / across, position % across];
                filter.runs(size, place, |to, from, len| {
                    found.extend((0..len).map(|i| [from + i, to + i, position]));
                });
            }
            assert_eq!(found, meetings(&Maps { images: 1, size }, &filter), "{filter:?}");
        }
    }
}
