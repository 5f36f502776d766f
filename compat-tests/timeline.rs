//! What a client saw, as a picture for people: one line for each quarter of a second.
use std::fmt::Write;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(250);
const WIDTH: usize = 24;
/// Lines around one with something to see that are drawn, too.
const AROUND: usize = 2;
/// An answer that took longer is something to see.
const SLOW: Duration = Duration::from_millis(50);

/// Something that happened, for the right-hand column.
#[derive(Clone, Debug)]
pub struct Note {
    /// When.
    pub at: Instant,
    /// What, in a few words.
    pub text: String,
}

/// Draws the round trips of a connection (when each ended, and how long it took) and the notes.
pub fn draw(start: Instant, round_trips: &[(Instant, Duration)], notes: &[Note]) -> String {
    let slot = |at: Instant| (at.saturating_duration_since(start).as_millis() / STEP.as_millis()) as usize;
    let last = round_trips.iter().map(|(at, _)| slot(*at)).chain(notes.iter().map(|note| slot(note.at))).max();
    let mut rows: Vec<Row> = (0..=last.unwrap_or(0)).map(|_| Row::default()).collect();
    for (at, took) in round_trips {
        let row = &mut rows[slot(*at)];
        row.count += 1;
        row.worst = row.worst.max(*took);
    }
    for note in notes {
        rows[slot(note.at)].notes.push(&note.text);
    }
    let most = rows.iter().map(|row| row.count).max().unwrap_or(0).max(1);
    let mut picture = format!("{:>7}  {:WIDTH$}  {:>9}\n", "time", "answers", "slowest");
    let shown = |number: usize| {
        let near = number.saturating_sub(AROUND)..=(number + AROUND).min(rows.len() - 1);
        rows[near].iter().any(|row| row.is_special())
    };
    let mut left_out = 0;
    for (number, row) in rows.iter().enumerate() {
        if !shown(number) {
            left_out += 1;
            if number + 1 < rows.len() && !shown(number + 1) {
                continue;
            }
            let _ = writeln!(picture, "      ⋮  {:.2} s like this", STEP.as_secs_f64() * f64::from(left_out));
            left_out = 0;
            continue;
        }
        let time = STEP.as_secs_f64() * number as f64;
        let slowest = if row.count == 0 { "-".into() } else { format!("{:.1} ms", row.worst.as_secs_f64() * 1000.0) };
        let line = format!("{time:>6.2}s  {:WIDTH$}  {slowest:>9}  {}", bar(row.count, most), row.notes.join("; "));
        let _ = writeln!(picture, "{}", line.trim_end());
    }
    picture
}

#[derive(Default)]
struct Row<'a> {
    count: usize,
    worst: Duration,
    notes: Vec<&'a str>,
}

impl Row<'_> {
    fn is_special(&self) -> bool {
        !self.notes.is_empty() || self.count == 0 || self.worst > SLOW
    }
}

/// `count` out of `most` as blocks, with eighths; something is never drawn as nothing.
fn bar(count: usize, most: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (count * WIDTH * 8 / most).max(usize::from(count != 0));
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_and_note_lands_in_its_quarter_of_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let trips = [
            (at(10), Duration::from_millis(1)),
            (at(20), Duration::from_millis(3)),
            (at(600), Duration::from_millis(300)),
        ];
        let note = Note { at: at(300), text: "primary killed".into() };
        let picture = draw(start, &trips, &[note]);
        let lines: Vec<&str> = picture.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].contains("████") && lines[1].contains("3.0 ms"));
        assert!(lines[2].ends_with("-  primary killed") && !lines[2].contains('█'));
        assert!(lines[3].contains("300.0 ms"));
    }

    #[test]
    fn a_long_time_without_news_is_one_line() {
        let start = Instant::now();
        let trips: Vec<_> = (0..100).map(|n| (start + STEP * n, Duration::from_millis(1))).collect();
        let note = Note { at: start + STEP * 50, text: "here".into() };
        let picture = draw(start, &trips, &[note]);
        let lines: Vec<&str> = picture.lines().collect();
        assert_eq!(lines.len(), 1 + 1 + 5 + 1);
        assert!(lines[1].ends_with("12.00 s like this") && lines[7].ends_with("11.75 s like this"));
        assert!(lines[4].ends_with("here"));
    }

    #[test]
    fn a_single_answer_among_many_is_still_seen() {
        assert_eq!(bar(1, 100_000), "▏");
        assert_eq!(bar(0, 10), "");
        assert_eq!(bar(10, 10).chars().count(), WIDTH);
    }
}
