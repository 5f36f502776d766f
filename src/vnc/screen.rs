//! What is shown, and since when: each tile has the number of the picture in which it changed last.

/// A picture, three bytes a pixel: red, green, blue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Rows from top to bottom, without padding.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A pixel's colour.
    #[inline]
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }
}

/// A part of a screen, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rect {
    pub x: u16,
    pub y: u16,
    pub width: u16,
    pub height: u16,
}

impl Rect {
    /// What both cover; nothing if that is empty.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let span = |a: u16, al: u16, b: u16, bl: u16| {
            let start = a.max(b);
            let end = (u32::from(a) + u32::from(al)).min(u32::from(b) + u32::from(bl));
            (end > u32::from(start)).then(|| (start, (end - u32::from(start)) as u16))
        };
        let (x, width) = span(self.x, self.width, other.x, other.width)?;
        let (y, height) = span(self.y, self.height, other.y, other.height)?;
        Some(Self { x, y, width, height })
    }

    /// All of a screen of this size.
    pub fn of_size([width, height]: [u16; 2]) -> Self {
        Self { x: 0, y: 0, width, height }
    }
}

const TILE_WIDTH: usize = 64;
const TILE_HEIGHT: usize = 16;

/// The picture that is shown.
#[derive(Default)]
pub struct Screen {
    picture: Picture,
    /// Grows with each picture that differs from the one before.
    generation: u64,
    /// The picture since which it has this size.
    resized: u64,
    /// By row and column.
    tiles: Vec<u64>,
}

impl Screen {
    /// The picture.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// The number of the picture.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Width and height in pixels.
    pub fn size(&self) -> [u16; 2] {
        [self.picture.width as u16, self.picture.height as u16]
    }

    /// Shows a picture. Returns whether it differs from the one before; one that is empty or too large for the protocol is not
    /// shown.
    pub fn show(&mut self, picture: Picture) -> bool {
        let (width, height) = (picture.width, picture.height);
        let possible = 1..=usize::from(u16::MAX);
        if !possible.contains(&width) || !possible.contains(&height) || picture.rgb.len() != width * height * 3 {
            return false;
        }
        let next = self.generation + 1;
        let columns = width.div_ceil(TILE_WIDTH);
        if self.size() != [width as u16, height as u16] {
            self.tiles = vec![next; columns * height.div_ceil(TILE_HEIGHT)];
            (self.generation, self.resized) = (next, next);
        } else {
            let (old, new) = (self.picture.rgb.chunks_exact(width * 3), picture.rgb.chunks_exact(width * 3));
            for (y, (old, new)) in old.zip(new).enumerate().filter(|(_, (old, new))| old != new) {
                let tiles = old.chunks(TILE_WIDTH * 3).zip(new.chunks(TILE_WIDTH * 3));
                for (column, _) in tiles.enumerate().filter(|(_, (old, new))| old != new) {
                    self.tiles[y / TILE_HEIGHT * columns + column] = next;
                    self.generation = next;
                }
            }
        }
        self.picture = picture;
        self.generation == next
    }

    /// The parts that `seen` has not seen, or all, where they touch `area`: as few rectangles, of whole tiles. They are seen
    /// then.
    pub fn take(&self, seen: &mut Seen, area: Rect, all: bool) -> Vec<Rect> {
        if seen.resized != self.resized {
            *seen = Seen { resized: self.resized, tiles: vec![0; self.tiles.len()] };
        }
        let columns = self.picture.width.div_ceil(TILE_WIDTH).max(1);
        let mut done: Vec<Rect> = vec![];
        // Those that end at the row above, and may go on.
        let mut open: Vec<Rect> = vec![];
        for (row, tiles) in self.tiles.chunks(columns).enumerate() {
            let mut runs: Vec<Rect> = vec![];
            for (column, changed) in tiles.iter().enumerate() {
                let seen = &mut seen.tiles[row * columns + column];
                let tile = Rect {
                    x: (column * TILE_WIDTH) as u16,
                    y: (row * TILE_HEIGHT) as u16,
                    width: TILE_WIDTH as u16,
                    height: TILE_HEIGHT as u16,
                };
                if !all && *changed <= *seen || tile.intersect(area).is_none() {
                    continue;
                }
                *seen = self.generation;
                match runs.last_mut() {
                    Some(run) if run.x + run.width == tile.x => run.width += tile.width,
                    _ => runs.push(tile),
                }
            }
            for run in &mut runs {
                if let Some(at) = open.iter().position(|o| (o.x, o.width) == (run.x, run.width)) {
                    let above = open.swap_remove(at);
                    *run = Rect { height: above.height + run.height, ..above };
                }
            }
            done.append(&mut open);
            open = runs;
        }
        done.append(&mut open);
        let whole = Rect::of_size(self.size());
        done.into_iter().filter_map(|rect| rect.intersect(whole)).collect()
    }
}

/// What a viewer has seen: the number of the picture by tile.
#[derive(Default)]
pub struct Seen {
    resized: u64,
    tiles: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn black(width: usize, height: usize) -> Picture {
        Picture { width, height, rgb: vec![0; width * height * 3] }
    }

    fn rect(x: u16, y: u16, width: u16, height: u16) -> Rect {
        Rect { x, y, width, height }
    }

    #[test]
    fn only_what_has_changed_is_told_and_only_once() {
        let (mut screen, mut seen) = (Screen::default(), Seen::default());
        assert!(screen.show(black(200, 40)));
        let whole = rect(0, 0, 200, 40);
        assert_eq!(screen.take(&mut seen, whole, false), [whole]);
        assert!(!screen.show(black(200, 40)));
        let mut next = black(200, 40);
        for (x, y) in [(70, 3), (130, 17), (70, 20)] {
            next.rgb[(y * 200 + x) * 3] = 9;
        }
        assert!(screen.show(next));
        assert_eq!(screen.take(&mut seen, rect(0, 10, 100, 2), false), [rect(64, 0, 64, 16)]);
        assert_eq!(screen.take(&mut seen, whole, false), [rect(64, 16, 128, 16)]);
        assert_eq!(screen.take(&mut seen, whole, false), []);
        assert_eq!(screen.take(&mut seen, rect(199, 0, 9, 9), true), [rect(192, 0, 8, 16)]);
        assert!(screen.show(black(64, 10)));
        assert_eq!(screen.take(&mut seen, whole, false), [rect(0, 0, 64, 10)]);
    }

    #[test]
    fn tiles_above_each_other_make_one_rectangle() {
        let mut screen = Screen::default();
        screen.show(black(640, 480));
        assert_eq!(screen.take(&mut Seen::default(), rect(0, 0, 65535, 65535), false), [rect(0, 0, 640, 480)]);
    }

    #[test]
    fn pictures_that_the_protocol_cannot_have_are_not_shown() {
        let mut screen = Screen::default();
        assert!(!screen.show(Picture::default()));
        assert!(!screen.show(black(65536, 1)));
        assert!(!screen.show(Picture { width: 2, height: 2, rgb: vec![0; 11] }));
        assert_eq!(screen.size(), [0, 0]);
    }
}
