//! A timeline as an SVG: a line for each rank, a box for each cell, numbered by micro-batch.

use std::fmt::Write;

use crate::table::{Action, Op, Table};
use crate::timeline::Timeline;

const WIDTH: f64 = 1600.0;
const LINE_HEIGHT: f64 = 24.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 40.0;
/// A box narrower than this has no room for its number.
const NUMBER_WIDTH_MIN: f64 = 13.0;

/// `unit` names the unit of time on the axis.
pub fn svg(table: &Table, timeline: &Timeline, title: &str, unit: &str) -> String {
    let makespan = timeline.makespan().max(f64::MIN_POSITIVE);
    let scale = (WIDTH - LEFT - 16.0) / makespan;
    let height = TOP + LINE_HEIGHT * table.n_ranks() as f64 + 48.0;
    let mut out = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text}");
    };
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{}</text>",
        escaped(title)
    ));
    let legend = [
        ("forward", Op::Forward),
        ("backward", Op::Backward),
        ("input gradient", Op::BackwardInput),
        ("weight gradient", Op::BackwardWeight),
    ];
    for (i, (name, op)) in legend.into_iter().enumerate() {
        let x = LEFT + 120.0 * i as f64;
        let fill = colour(Action { op, direction: 0, stage: 0, micro_batch: 0 }, false);
        put(format_args!(
            "<rect x=\"{x}\" y=\"22\" width=\"10\" height=\"10\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"31\">{name}</text>",
            x + 14.0
        ));
    }
    for (rank, spans) in timeline.spans.iter().enumerate() {
        let y = TOP + LINE_HEIGHT * rank as f64;
        put(format_args!("<text x=\"8\" y=\"{}\">rank {rank}</text>", y + 15.0));
        let first = table.stages_of(rank).first().copied();
        for span in spans {
            let actions: Vec<Action> = table.rows[rank][span.cell].actions().collect();
            let part_height = (LINE_HEIGHT - 3.0) / actions.len() as f64;
            for (i, a) in actions.iter().enumerate() {
                let fill = colour(*a, first != Some((a.direction, a.stage)));
                let (x, y) = (LEFT + span.start * scale, y + part_height * i as f64);
                let width = (span.end - span.start) * scale;
                put(format_args!(
                    "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" \
                     height=\"{part_height:.2}\" fill=\"{fill}\" stroke=\"white\" \
                     stroke-width=\"0.5\"><title>{a}: {:.6} to {:.6} {unit}</title></rect>",
                    span.start, span.end
                ));
                if width >= NUMBER_WIDTH_MIN {
                    put(format_args!(
                        "<text x=\"{:.2}\" y=\"{:.2}\" text-anchor=\"middle\">{}</text>",
                        x + width / 2.0,
                        y + part_height / 2.0 + 3.5,
                        a.micro_batch
                    ));
                }
            }
        }
    }
    let y = TOP + LINE_HEIGHT * table.n_ranks() as f64 + 16.0;
    for i in 0..=8 {
        let t = makespan * f64::from(i) / 8.0;
        put(format_args!(
            "<text x=\"{:.2}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
            LEFT + t * scale,
            (t * 1000.0).round() / 1000.0
        ));
    }
    put(format_args!("<text x=\"{LEFT}\" y=\"{}\">{unit}</text>\n</svg>", y + 16.0));
    out
}

/// By op; paler for what is not the rank's first stage.
fn colour(a: Action, other: bool) -> &'static str {
    match (a.op, other) {
        (Op::Forward, false) => "#6fa8dc",
        (Op::Forward, true) => "#b4d3ee",
        (Op::Backward, false) => "#93c47d",
        (Op::Backward, true) => "#c4e0b8",
        (Op::BackwardInput, false) => "#f6b26b",
        (Op::BackwardInput, true) => "#fad7b0",
        (Op::BackwardWeight, false) => "#c27ba0",
        (Op::BackwardWeight, true) => "#dfbccd",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
