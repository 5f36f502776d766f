//! Plots of what was measured, as SVG.
use crate::report::Report;
use crate::rows::Aim;
use crate::samples::Samples;
use crate::scenes::Scene;
use plotters::prelude::*;
use std::io;
use std::path::Path;

const SIZE: (u32, u32) = (900, 460);
const FONT: &str = "sans-serif";
const COLORS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 51, 17),
    RGBColor(117, 112, 179),
];

/// Draws all plots for which there are values into `folder`; their names.
///
/// # Errors
/// If a file cannot be written.
pub fn draw(report: &Report, folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut plot = |name: &str, drawn: Result<bool, Box<dyn std::error::Error>>| -> io::Result<()> {
        if drawn.map_err(|error| io::Error::other(format!("{name}: {error}")))? {
            names.push(name.to_string());
        }
        Ok(())
    };
    plot("pauses.svg", pauses(report, &folder.join("pauses.svg")))?;
    plot("ratios.svg", ratios(report, &folder.join("ratios.svg")))?;
    plot("failover.svg", failovers(report, &folder.join("failover.svg")))?;
    Ok(names)
}

type Drawn = Result<bool, Box<dyn std::error::Error>>;

/// Shares of checkpoints whose pause is at most so long.
fn pauses(report: &Report, path: &Path) -> Drawn {
    let curves = [
        ("idle", Scene::Pair, "pause.idle"),
        ("1,000 pages", Scene::Pair, "pause.1000"),
        ("10,000 pages", Scene::Pair, "pause.10000"),
        ("16-bit guest", Scene::Bios, "pause.bios"),
        ("16-bit guest, QEMU 7.2", Scene::BiosQemu, "pause.bios"),
    ];
    let curves = curves.into_iter().filter_map(|(name, scene, key)| Some((name, report.samples(scene, key)?)));
    let curves: Vec<(&str, &Samples)> = curves.filter(|(_, samples)| !samples.0.is_empty()).collect();
    let all = || curves.iter().flat_map(|(_, samples)| samples.0.iter().copied());
    let Some(longest) = all().reduce(f64::max) else { return Ok(false) };
    let shortest = all().fold(longest, f64::min).max(0.01);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Checkpoints: how long the guest stands still", (FONT, 20))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d((shortest * 0.8..longest * 1.25).log_scale(), 0.0..100.0)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("milliseconds").y_desc("% of checkpoints").draw()?;
    for (number, (name, samples)) in curves.iter().enumerate() {
        let color = COLORS[number % COLORS.len()].stroke_width(2);
        let shares =
            (1..=100).filter_map(|share| Some((samples.quantile(f64::from(share) / 100.0)?, f64::from(share))));
        chart
            .draw_series(LineSeries::new(shares, color))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    legend(&mut chart)?;
    root.present()?;
    Ok(true)
}

/// The pair beside the unprotected VM: longer is better.
fn ratios(report: &Report, path: &Path) -> Drawn {
    let shown = ["echo.median", "upload", "download", "connections", "connections.8", "put.median"];
    let rows: Vec<(String, f64, Option<f64>)> = report
        .rows()
        .into_iter()
        .filter(|row| shown.contains(&row.key))
        .filter_map(|row| {
            let (ratio, alone) = (row.ratio()?, row.alone?);
            // Of times the inverse: 100 % is as fast as alone.
            let speed = if row.unit == "ms" { 100.0 / ratio } else { ratio * 100.0 };
            let aim = match row.aim {
                Aim::Share(share) => Some(share * 100.0),
                Aim::Times(times) => Some(100.0 / times),
                Aim::Within(more) => Some(100.0 * alone / (alone + more)),
                _ => None,
            };
            let name = match row.key {
                "connections.8" => "connections, 8 clients".to_string(),
                _ => row.name.replace(", median", ""),
            };
            Some((format!("{name}: {speed:.0} %"), speed, aim))
        })
        .collect();
    if rows.is_empty() {
        return Ok(false);
    }
    let most = rows.iter().map(|row| row.1).fold(100.0, f64::max) * 1.1;
    let count = rows.len() as f64;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Speed of a pair; 100 % is an unprotected VM", (FONT, 20))
        .margin(14)
        .x_label_area_size(42)
        .build_cartesian_2d(0.0..most, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(WHITE)
        .x_desc("% (the line in a bar is its aim)")
        .draw()?;
    for (number, (name, speed, aim)) in rows.iter().enumerate() {
        let base = count - 1.0 - number as f64;
        let color = if aim.is_none_or(|aim| speed >= &aim) { COLORS[1] } else { COLORS[2] };
        chart.draw_series([Rectangle::new([(0.0, base + 0.12), (*speed, base + 0.55)], color.filled())])?;
        chart.draw_series([Text::new(name.clone(), (0.5, base + 0.88), (FONT, 15))])?;
        if let Some(aim) = aim {
            chart.draw_series([PathElement::new([(*aim, base + 0.05), (*aim, base + 0.62)], BLACK.stroke_width(2))])?;
        }
    }
    root.present()?;
    Ok(true)
}

/// Answers around each failover.
fn failovers(report: &Report, path: &Path) -> Drawn {
    let all = report
        .scenes
        .iter()
        .filter(|(scene, _)| *scene == Scene::Failover)
        .flat_map(|(_, result)| &result.failovers)
        .collect::<Vec<_>>();
    if all.is_empty() {
        return Ok(false);
    }
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let count = all.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption("Failovers: a dot for each answer, one asked for each millisecond", (FONT, 20))
        .margin(14)
        .x_label_area_size(42)
        .build_cartesian_2d(-700.0..300.0, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(WHITE)
        .x_desc("milliseconds from the failover command")
        .draw()?;
    for (number, (died, color)) in [("secondary", COLORS[0]), ("primary", COLORS[2])].into_iter().enumerate() {
        let lines = all.iter().enumerate().filter(|(_, failover)| failover.died == died);
        let dots =
            lines.flat_map(|(line, failover)| failover.answers.iter().map(move |at| (*at, count - 0.5 - line as f64)));
        let dots = dots.filter(|(at, _)| (-700.0..=300.0).contains(at)).map(|at| Circle::new(at, 2, color.filled()));
        let label = ["the secondary died", "the primary died"][number];
        chart.draw_series(dots)?.label(label).legend(move |(x, y)| Circle::new((x + 9, y), 3, color.filled()));
    }
    legend(&mut chart)?;
    root.present()?;
    Ok(true)
}

fn legend<'a, B: DrawingBackend + 'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, B, C>,
) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: 'static,
{
    let labels = chart.configure_series_labels();
    let mut labels = labels;
    labels
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .draw()?;
    Ok(())
}
