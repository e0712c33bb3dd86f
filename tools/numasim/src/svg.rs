//! Plots: plain SVG, a file each.

use std::fmt::Write as _;

use crate::report::Report;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 5] = ["#1b6ca8", "#d1495b", "#66a182", "#edae49", "#6a4c93"];

/// One line of a plot.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// A plot of lines; `mark` draws a horizontal rule.
pub fn plot(title: &str, x: &str, y: &str, lines: &[Line], mark: Option<f64>) -> String {
    let all = || lines.iter().flat_map(|l| &l.points);
    let max_x = all().map(|p| p.0).fold(1e-9, f64::max);
    let values = || all().map(|p| p.1).chain(mark);
    let (low, high) = (
        values().fold(f64::INFINITY, f64::min),
        values().fold(f64::NEG_INFINITY, f64::max),
    );
    let (low, high) = if low < high {
        (low.min(0.98 * low), high)
    } else {
        (0.0, 1.0)
    };
    let at = |(px, py): (f64, f64)| {
        let x = LEFT + px / max_x * (WIDTH - LEFT - 20.0);
        (
            x,
            HEIGHT - BOTTOM - (py - low) / (high - low) * (HEIGHT - BOTTOM - 50.0),
        )
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    for i in 0..=4 {
        let value = low + (high - low) * f64::from(i) / 4.0;
        let (_, py) = at((0.0, value));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{py:.1}\" y2=\"{py:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            py + 4.0
        );
    }
    if let Some(mark) = mark {
        let (_, py) = at((0.0, mark));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{py:.1}\" y2=\"{py:.1}\" stroke=\"#444\" stroke-dasharray=\"4\"/>",
            WIDTH - 20.0
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<String> = line
            .points
            .iter()
            .map(|p| at(*p))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/><text x=\"{:.0}\" y=\"38\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            LEFT + 130.0 * i as f64,
            escape(&line.name)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><text x=\"14\" y=\"{}\" transform=\"rotate(-90 14 {})\">{}</text>\n</svg>",
        WIDTH - 20.0,
        HEIGHT - 10.0,
        escape(x),
        HEIGHT / 2.0,
        HEIGHT / 2.0,
        escape(y)
    );
    svg
}

/// Ratios of all trials, sorted, a line for each comparison.
pub fn ratios(report: &Report) -> String {
    let line = |a: &crate::report::Against| {
        let mut sorted = a.ratios.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len().max(2) as f64 - 1.0;
        let points = sorted
            .iter()
            .enumerate()
            .map(|(i, r)| (100.0 * i as f64 / n, *r));
        Line {
            name: a.other.clone(),
            points: points.collect(),
        }
    };
    let lines: Vec<Line> = report.against.iter().map(line).collect();
    plot(
        "Throughput of perigee against each, trials in order",
        "per cent of trials",
        "ratio",
        &lines,
        Some(1.0),
    )
}
