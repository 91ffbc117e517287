//! Pictures of a run's metrics, as SVG: losses, and how unevenly the experts are used.
//!
//! Several runs can share a picture, which is how a setting is compared with its opposite.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::metrics::Record;

const SIZE: (u32, u32) = (900, 520);

/// Line colours that stay apart for most kinds of colour blindness (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
];

#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    #[error("no picture of {title}: expected at least one finite number, found none")]
    Empty { title: String },
    #[error("cannot draw {title}: {reason}")]
    Draw { title: String, reason: String },
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: std::io::Error },
}

/// A line in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    /// (step, value), steps ascending. Values that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Drawn thin and pale, without a name in the legend: the raw numbers under a smoothed line.
    pub is_faint: bool,
}

/// A picture of lines over steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    pub title: String,
    pub y_label: String,
    pub series: Vec<Series>,
}

/// The records of a run and what to call it; a single run needs no name.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub name: &'a str,
    pub records: &'a [Record],
}

/// Training loss (smoothed over `smooth_steps`, raw behind it), held-out loss, and every metric
/// whose name starts with `mtp_loss`.
pub fn losses(runs: &[Run<'_>], smooth_steps: f64) -> Chart {
    let mut series = Vec::new();
    for run in runs {
        for name in loss_names(run.records) {
            let raw = numbers(run.records, &name);
            let label = label(run, &name.replace('_', " "));
            if name == "held_out_loss" {
                series.push(Series { name: label, points: raw, is_faint: false });
            } else {
                let points = smooth(&raw, smooth_steps);
                series.push(Series { name: String::new(), points: raw, is_faint: true });
                series.push(Series { name: label, points, is_faint: false });
            }
        }
    }
    Chart { title: "Loss".to_owned(), y_label: "nats per token".to_owned(), series }
}

/// MaxVio, largest expert load over mean load minus one: mean and maximum over the layers.
pub fn max_vio(runs: &[Run<'_>], smooth_steps: f64) -> Chart {
    let mut series = Vec::new();
    for run in runs {
        let over = |f: fn(&[f64]) -> f64| -> Vec<(f64, f64)> {
            let of = |r: &Record| Some((r.step as f64, f(&r.layers("max_vio")?)));
            smooth(&run.records.iter().filter_map(of).collect::<Vec<_>>(), smooth_steps)
        };
        let mean = over(|x| x.iter().sum::<f64>() / x.len() as f64);
        let max = over(|x| x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        let (mean_name, max_name) = (label(run, "mean of layers"), label(run, "worst layer"));
        series.push(Series { name: mean_name, points: mean, is_faint: false });
        series.push(Series { name: max_name, points: max, is_faint: false });
    }
    let y_label = "max load / mean load - 1".to_owned();
    Chart { title: "MaxVio of the expert load".to_owned(), y_label, series }
}

/// Exponential moving average with weights that fall to 1/e over `steps`, without the bias towards
/// the first value that starting from it would give.
pub fn smooth(points: &[(f64, f64)], steps: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut previous = None;
    let mut average = |&(x, y): &(f64, f64)| {
        let decay = previous.map_or(0.0, |p: f64| ((p - x) / steps.max(1e-9)).exp());
        previous = Some(x);
        // A value that is none neither counts nor wipes out what came before.
        if y.is_finite() {
            sum = sum * decay + y;
            weight = weight * decay + 1.0;
        }
        (x, if y.is_finite() { sum / weight } else { y })
    };
    points.iter().map(&mut average).collect()
}

/// Draws `chart` into an SVG file.
pub fn write_svg(path: &Path, chart: &Chart) -> Result<(), PlotError> {
    let svg = render(chart)?;
    fs::write(path, svg).map_err(|error| PlotError::Write { path: path.to_owned(), error })
}

/// The picture as text.
pub fn render(chart: &Chart) -> Result<String, PlotError> {
    let Some(bounds) = Bounds::of(chart) else {
        return Err(PlotError::Empty { title: chart.title.clone() });
    };
    let mut svg = String::new();
    draw(chart, &bounds, &mut svg)
        .map_err(|e| PlotError::Draw { title: chart.title.clone(), reason: e.to_string() })?;
    Ok(svg)
}

fn draw(chart: &Chart, bounds: &Bounds, svg: &mut String) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut context = ChartBuilder::on(&area)
        .caption(&chart.title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(bounds.x.0..bounds.x.1, bounds.y.0..bounds.y.1)?;
    context
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("step")
        .y_desc(&chart.y_label)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    let mut n_named = 0;
    for series in &chart.series {
        // A faint line has the colour of the line it lies under, which comes next.
        let colour = COLOURS[n_named % COLOURS.len()];
        let style = if series.is_faint { colour.mix(0.25) } else { colour.mix(1.0) };
        let points = series.points.iter().copied().filter(|(_, y)| y.is_finite());
        let line = LineSeries::new(points, style.stroke_width(if series.is_faint { 1 } else { 2 }));
        let drawn = context.draw_series(line)?;
        if !series.is_faint {
            let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
            drawn.label(&series.name).legend(key);
            n_named += 1;
        }
    }
    context
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(180, 180, 180))
        .draw()?;
    drop(context);
    area.present()?;
    Ok(())
}

/// What the axes span: all finite points, a twentieth of room above and below, never an empty span.
struct Bounds {
    x: (f64, f64),
    y: (f64, f64),
}

impl Bounds {
    fn of(chart: &Chart) -> Option<Self> {
        let points = chart.series.iter().flat_map(|s| &s.points).filter(|(_, y)| y.is_finite());
        let empty = (f64::INFINITY, f64::NEG_INFINITY);
        let grow = |(low, high): (f64, f64), v: f64| (low.min(v), high.max(v));
        let (x, y) = points.fold((empty, empty), |(x, y), p| (grow(x, p.0), grow(y, p.1)));
        if x.0 > x.1 {
            return None;
        }
        let room = (0.05 * (y.1 - y.0)).max(1e-6 * y.1.abs()).max(1e-9);
        Some(Self { x: (x.0, x.1.max(x.0 + 1.0)), y: (y.0 - room, y.1 + room) })
    }
}

/// The losses that any record has, main and held-out first.
fn loss_names(records: &[Record]) -> Vec<String> {
    let mut names = vec!["loss".to_owned(), "held_out_loss".to_owned()];
    for name in records.iter().flat_map(|r| r.values.keys()) {
        if name.starts_with("mtp_loss") && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names.retain(|name| records.iter().any(|r| r.number(name).is_some()));
    names
}

fn numbers(records: &[Record], name: &str) -> Vec<(f64, f64)> {
    records.iter().filter_map(|r| Some((r.step as f64, r.number(name)?))).collect()
}

fn label(run: &Run<'_>, name: &str) -> String {
    if run.name.is_empty() { name.to_owned() } else { format!("{}: {name}", run.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(n: u64) -> Vec<Record> {
        (1..=n)
            .map(|step| {
                let loss = 5.0 / (step as f64).sqrt();
                let vio = [1.0 / step as f64, 2.0 / step as f64];
                let record = Record::new(step).with("loss", loss).with("mtp_loss", loss + 1.0);
                let record = record.with_layers("max_vio", &vio);
                if step % 10 == 0 { record.with("held_out_loss", loss + 0.5) } else { record }
            })
            .collect()
    }

    fn names(chart: &Chart) -> Vec<&str> {
        chart.series.iter().filter(|s| !s.is_faint).map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn losses_shows_every_loss_there_is() {
        let records = records(50);
        let chart = losses(&[Run { name: "", records: &records }], 5.0);
        assert_eq!(names(&chart), ["loss", "held out loss", "mtp loss"]);
        let held_out = chart.series.iter().find(|s| s.name == "held out loss").unwrap();
        assert_eq!(held_out.points.len(), 5);
        let without = losses(&[Run { name: "", records: &records[..9] }], 5.0);
        assert_eq!(names(&without), ["loss", "mtp loss"]);
    }

    #[test]
    fn two_runs_share_a_picture() {
        let records = records(50);
        let runs = [("bias", &records[..]), ("no bias", &records[..20])];
        let runs = runs.map(|(name, records)| Run { name, records });
        let svg = render(&max_vio(&runs, 1.0)).unwrap();
        for name in ["bias: mean of layers", "no bias: worst layer", "MaxVio of the expert load"] {
            assert!(svg.contains(name), "{name}");
        }
        // Each run's two lines have a colour of their own, in the picture and in the legend.
        for colour in ["#0072B2", "#D55E00", "#009E73", "#CC79A7"] {
            assert_eq!(svg.matches(colour).count(), 2, "{colour}");
        }
    }

    #[test]
    fn max_vio_is_taken_over_layers() {
        let records = records(4);
        let chart = max_vio(&[Run { name: "", records: &records }], 0.0);
        assert_eq!(chart.series[0].points[1], (2.0, 0.75));
        assert_eq!(chart.series[1].points[1], (2.0, 1.0));
    }

    #[test]
    fn smoothing_keeps_a_constant_and_lags_a_step() {
        let constant: Vec<_> = (0..20).map(|x| (f64::from(x), 3.0)).collect();
        assert!(smooth(&constant, 4.0).iter().all(|p| (p.1 - 3.0).abs() < 1e-12));
        let step = [(0.0, 0.0), (1.0, 1.0)];
        // Weights 1/e and 1.
        let expected = 1.0 / (1.0 + (-1f64).exp());
        assert!((smooth(&step, 1.0)[1].1 - expected).abs() < 1e-12);
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let points = vec![(1.0, f64::NAN), (2.0, 1.0), (3.0, f64::INFINITY), (4.0, 2.0)];
        let smoothed = smooth(&points, 10.0);
        assert!(smoothed[3].1.is_finite());
        let series = vec![Series { name: "a".into(), points, is_faint: false }];
        let chart = Chart { title: "t".into(), y_label: "y".into(), series };
        assert!(!render(&chart).unwrap().contains("NaN"));
    }

    #[test]
    fn one_point_and_equal_points_can_be_drawn() {
        for points in [vec![(1.0, 2.0)], vec![(1.0, 0.0), (2.0, 0.0)], vec![(0.0, 1e300)]] {
            let series = vec![Series { name: "a".into(), points, is_faint: false }];
            let chart = Chart { title: "t".into(), y_label: "y".into(), series };
            assert!(render(&chart).unwrap().starts_with("<svg"));
        }
    }

    #[test]
    fn a_picture_of_nothing_is_refused() {
        let error = render(&losses(&[], 1.0)).unwrap_err().to_string();
        assert_eq!(error, "no picture of Loss: expected at least one finite number, found none");
    }
}
