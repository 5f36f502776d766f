//! The pair on a terminal.
use crate::model::{CAUSES, Model, Pause, Side};
use crate::plain;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Bar, BarChart, Block, BorderType, Chart, Dataset, GraphType, LegendPosition, Paragraph};

/// Seconds of pauses that are shown.
const WINDOW: f64 = 120.0;
/// Colours of causes, in the order of [`CAUSES`]; the last is for those not known.
const COLORS: [Color; 8] = [
    Color::Cyan,
    Color::Yellow,
    Color::Red,
    Color::Magenta,
    Color::Green,
    Color::Blue,
    Color::LightYellow,
    Color::DarkGray,
];
const UNKNOWN: usize = 7;
/// Lines of a side's figures with their border.
const SIDE_HEIGHT: u16 = 12;

/// Draws everything. `now`: seconds since 1970.
pub fn draw(frame: &mut Frame<'_>, model: &Model, now: f64) {
    let [head, sides, pauses, below] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(SIDE_HEIGHT),
        Constraint::Min(8),
        Constraint::Length(9),
    ])
    .areas(frame.area());
    frame.render_widget(heading(model, now), head);
    let halves = Layout::horizontal([Constraint::Percentage(50); 2]).split(sides);
    for (side, area) in model.sides.iter().zip(halves.iter()) {
        draw_side(frame, side, *area);
    }
    draw_pauses(frame, model, now, pauses);
    let [causes, events] = Layout::horizontal([Constraint::Length(34), Constraint::Min(20)]).areas(below);
    draw_causes(frame, model, causes);
    draw_events(frame, model, events);
}

fn heading(model: &Model, now: f64) -> Line<'static> {
    let verdict = if model.is_in_lockstep() {
        Span::styled(" IN LOCK-STEP ", Style::new().fg(Color::Black).bg(Color::Green))
    } else {
        Span::styled(" NOT IN LOCK-STEP ", Style::new().fg(Color::White).bg(Color::Red))
    };
    Line::from(vec![
        " Lockstep ".bold(),
        verdict,
        format!("  {} UTC", plain::clock(now).split('.').next().unwrap_or_default()).into(),
        "   q quits".dark_gray(),
    ])
}

fn frame_of(title: String) -> Block<'static> {
    Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().fg(Color::DarkGray)).title(title)
}

fn draw_side(frame: &mut Frame<'_>, side: &Side, area: Rect) {
    let color = match side.role.as_str() {
        _ if side.trouble.is_some() => Color::Red,
        "primary" => Color::Green,
        "secondary" => Color::Cyan,
        _ => Color::Yellow,
    };
    let mut lines =
        vec![Line::from(Span::styled(plain::state(side), Style::new().fg(color).add_modifier(Modifier::BOLD)))];
    for (name, value) in plain::figures(side) {
        lines.push(Line::from(vec![format!("{name:<12}").dark_gray(), value.into()]));
    }
    frame.render_widget(Paragraph::new(lines).block(frame_of(format!(" {} ", side.address))), area);
}

fn draw_pauses(frame: &mut Frame<'_>, model: &Model, now: f64, area: Rect) {
    let shown: Vec<&Pause> = model.pauses.iter().filter(|pause| pause.at > now - WINDOW).collect();
    let longest = shown.iter().map(|pause| pause.length).fold(1.0, f64::max);
    let top = round_up(longest);
    let points: Vec<Vec<(f64, f64)>> = (0..=UNKNOWN)
        .map(|number| {
            let cause = CAUSES.get(number).copied();
            let of_cause =
                shown.iter().filter(|pause| pause.cause.as_deref().filter(|name| CAUSES.contains(name)) == cause);
            of_cause.map(|pause| (pause.at - now, pause.length)).collect()
        })
        .collect();
    let sets = points.iter().enumerate().filter(|(_, points)| !points.is_empty()).map(|(number, points)| {
        Dataset::default()
            .name(CAUSES.get(number).copied().unwrap_or("?"))
            .marker(Marker::Dot)
            .graph_type(GraphType::Scatter)
            .style(Style::new().fg(COLORS[number]))
            .data(points)
    });
    let rate = shown.len() as f64 / WINDOW;
    let chart = Chart::new(sets.collect())
        .block(frame_of(format!(" Pauses in ms: {} checkpoints, {rate:.2} a second ", shown.len())))
        .x_axis(
            Axis::default()
                .bounds([-WINDOW, 0.0])
                .labels([format!("-{WINDOW:.0} s"), format!("-{:.0} s", WINDOW / 2.0), "now".into()])
                .style(Style::new().fg(Color::DarkGray)),
        )
        .y_axis(
            Axis::default()
                .bounds([0.0, top])
                .labels(["0".into(), format!("{:.1}", top / 2.0), format!("{top:.0}")])
                .style(Style::new().fg(Color::DarkGray)),
        )
        .legend_position(Some(LegendPosition::TopLeft))
        .hidden_legend_constraints((Constraint::Percentage(40), Constraint::Percentage(70)));
    frame.render_widget(chart, area);
}

fn draw_causes(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let bars = CAUSES.iter().zip(COLORS).map(|(cause, color)| {
        Bar::default().label(Line::from(*cause)).value(model.count_of(cause)).style(Style::new().fg(color))
    });
    let bars: Vec<Bar<'_>> = bars.collect();
    let chart = BarChart::horizontal(bars).bar_width(1).bar_gap(0).block(frame_of(" Why ".into()));
    frame.render_widget(chart, area);
}

fn draw_events(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let room = usize::from(area.height.saturating_sub(2));
    let lines: Vec<Line<'_>> = model
        .events
        .iter()
        .skip(model.events.len().saturating_sub(room))
        .map(|event| {
            let side = ["1", "2"].get(event.side).copied().unwrap_or("?");
            Line::from(vec![format!("{} {side} ", plain::clock(event.at)).dark_gray(), event.text.clone().into()])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(frame_of(" Events (1: left, 2: right) ".into())), area);
}

/// The next of 1, 2, 5, 10, 20, 50, ...
fn round_up(value: f64) -> f64 {
    let ten = 10f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * ten).find(|step| *step >= value).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Update;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    const NOW: f64 = 1_700_000_000.0;

    fn picture(model: &Model) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 34)).unwrap();
        terminal.draw(|frame| draw(frame, model, NOW)).unwrap();
        terminal.backend().to_string()
    }

    fn pair() -> Model {
        let mut model = Model::new(["/run/primary.sock", "10.0.0.2:4444"]);
        for (side, role) in ["primary", "secondary"].into_iter().enumerate() {
            model.apply(side, Update::Connected);
            model.apply(side, Update::Status(json!({"status": "running"})));
            model.apply(side, Update::Colo(json!({"mode": role, "reason": "none", "statistics": {
                "checkpoints": 42, "causes": {"timer": 38, "mismatch": 4, "timeout": 0, "full": 0, "parameter": 0, "command": 0},
                "divergences": {"tcp": 5, "udp": 0, "icmp": 0, "other": 0},
                "pause": {"last": 2100, "median": 1900, "p99": 7200, "max": 31000, "total": 99000},
                "bytes": 12_345_678, "pages": 3000, "last-bytes": 65_536, "last-pages": 12,
                "held-packets": 2, "held-bytes": 2900, "lost-frames": 0,
                "style": "lockstep", "switches": 2, "buffered-time": 12_345}})));
        }
        for number in 0..60 {
            let at = NOW - 119.0 + f64::from(number) * 2.0;
            let (cause, pause) = if number % 10 == 3 { ("mismatch", 7500) } else { ("timer", 2000) };
            let data = json!({"mode": "primary", "cause": cause, "pause": pause});
            model.apply(0, Update::Event { at, name: "X_COLO_CHECKPOINT".into(), data });
        }
        model.apply(0, Update::Event { at: NOW - 130.0, name: "MIGRATION".into(), data: json!({"status": "colo"}) });
        model
    }

    #[test]
    fn a_pair_that_serves() {
        insta::assert_snapshot!(picture(&pair()));
    }

    #[test]
    fn a_survivor_and_a_dead_primary() {
        let mut model = pair();
        model.apply(0, Update::Lost { at: NOW - 2.0, why: "closed".into() });
        model.apply(
            1,
            Update::Event {
                at: NOW - 1.0,
                name: "COLO_EXIT".into(),
                data: json!({"mode": "secondary", "reason": "request"}),
            },
        );
        model.apply(1, Update::Colo(json!({"mode": "none", "last-mode": "secondary", "reason": "request"})));
        insta::assert_snapshot!(picture(&model));
    }

    #[test]
    fn a_small_terminal_is_drawn_as_far_as_it_goes() {
        for (width, height) in [(1, 1), (20, 5), (40, 12), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &pair(), NOW)).unwrap();
        }
    }

    #[test]
    fn the_axis_ends_at_a_round_number() {
        assert_eq!([0.3, 1.0, 1.1, 4.0, 7.0, 31.0, 700.0].map(round_up), [1.0, 1.0, 2.0, 5.0, 10.0, 50.0, 1000.0]);
    }
}
