//! The table of `weft explain --precision NAME`: what every product of a model is computed in, what
//! is saved for its backward, and which rule says so.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_ir::dim::{Dim, product};
use weft_ir::module::Module;
use weft_lang::lower::{Lowered, Site};
use weft_lang::settings::gemm::{Format, Key, Role};
use weft_lang::settings::recipe::{Product, Recipe};
use weft_lang::source::{SourceMap, Span};
use weft_passes::save_codes;

use crate::explain::{digits, number};

/// Every product of a lowered model.
pub struct Table {
    model: String,
    precision: String,
    sequence: u64,
    rows: Vec<Row>,
}

/// A site with all that is done there.
struct Row {
    site: Site,
    /// Rows of all segments, terms and columns of the forward product.
    sizes: [u64; 3],
    place: String,
    products: Vec<Line>,
    kept: Vec<Kept>,
}

/// One of the products of a site.
struct Line {
    role: Role,
    /// M, N, K.
    sizes: [u64; 3],
    operands: [Operand; 2],
    product: Product,
    /// The place of what says so, or the block's key that holds for all.
    why: Vec<String>,
}

struct Operand {
    name: &'static str,
    /// `e4m3<1x128, f32>`, or a plain type.
    format: String,
    shape: Vec<u64>,
    scales: Option<Vec<u64>>,
}

/// A value that is stored in a format of its own.
struct Kept {
    what: &'static str,
    format: Format,
    scales: Vec<u64>,
    stored: Stored,
    /// Of what is stored, or sent.
    bytes: u128,
    bf16_bytes: u128,
    why: String,
}

/// Where such a value lies.
#[derive(Clone, PartialEq)]
enum Stored {
    Here,
    /// It is the value that this site stores.
    With(String),
    /// Nowhere: the backward computes it again.
    Again,
    /// It is sent to other ranks, not stored.
    Sent,
}

impl Table {
    /// `saved`: what lies in memory for a backward.
    pub fn of(
        lowered: &Lowered,
        saved: &[save_codes::Kept],
        precision: &str,
        sequence: u64,
        map: &SourceMap,
    ) -> Result<Table> {
        let sites = lowered.sites.iter().zip(&lowered.recipes);
        let rows: Result<Vec<Row>> =
            sites.map(|(site, recipe)| row(&lowered.module, site, recipe, saved, map)).collect();
        let model = lowered.module.name.clone();
        Ok(Table { model, precision: precision.into(), sequence, rows: rows? })
    }

    pub fn json(&self) -> Value {
        json!({
            "model": self.model,
            "precision": self.precision,
            "sequence": self.sequence,
            "products": self.rows.iter().map(row_json).collect::<Vec<_>>(),
        })
    }

    /// A paragraph a site; sites that differ in nothing but their path are one.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} in {}, a sequence of {} tokens\n",
            self.model, self.precision, self.sequence
        );
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        let mut paragraphs: Vec<(Vec<String>, String)> = vec![];
        for row in &self.rows {
            let body = body(row);
            match told.get(&body) {
                Some(at) => paragraphs[*at].0.push(head(row)),
                None => {
                    told.insert(body.clone(), paragraphs.len());
                    paragraphs.push((vec![head(row)], body));
                }
            }
        }
        for (heads, body) in paragraphs {
            out += "\n";
            heads.iter().for_each(|h| out += &format!("{h}\n"));
            out += &body;
        }
        out
    }
}

fn row(
    module: &Module,
    site: &Site,
    recipe: &Recipe,
    saved: &[save_codes::Kept],
    map: &SourceMap,
) -> Result<Row> {
    let rows = product(&site.rows).context("a product has too many rows to count")?;
    let [m, n, k] = [rows, site.n, site.k].map(|d: Dim| module.dim_max(d));
    let roles: &[Role] = if site.weight.is_some() { &Role::ALL } else { &[Role::Forward] };
    let products = roles.iter().map(|role| line(site, recipe, *role, [m, n, k], map)).collect();
    let kept = [
        ("saved input", recipe.saved_input, Key::SavedInput, k),
        ("saved output", recipe.saved_output, Key::SavedOutput, n),
        ("dispatched", recipe.dispatched, Key::Dispatched, k),
    ];
    let kept = kept.into_iter().filter_map(|(what, format, key, width)| {
        let format = format?;
        let scales = scale_shape(&format, &[m, width]);
        let stored = match key {
            Key::Dispatched => Stored::Sent,
            _ => {
                let output = key == Key::SavedOutput;
                match saved.iter().find(|k| k.site == site.path && k.output == output) {
                    Some(kept) if kept.first == site.path => Stored::Here,
                    Some(kept) => Stored::With(kept.first.clone()),
                    None => Stored::Again,
                }
            }
        };
        let counts = matches!(stored, Stored::Here | Stored::Sent);
        let n_runs = u128::from(counts) * u128::from(site.layers) * u128::from(site.calls);
        let n_elements = u128::from(m) * u128::from(width);
        let n_scales: u128 = scales.iter().map(|n| u128::from(*n)).product();
        let bits = n_elements * u128::from(format.dtype.bits());
        let bytes = bits.div_ceil(8) + n_scales * u128::from(format.scale.bits()) / 8;
        Some(Kept {
            what,
            format,
            scales,
            stored,
            bytes: n_runs * bytes,
            bf16_bytes: n_runs * n_elements * 2,
            why: recipe.places.get(&key).map_or_else(String::new, |s| place(map, *s)),
        })
    });
    let (kept, place) = (kept.collect(), place(map, site.span));
    Ok(Row { site: site.clone(), sizes: [m, n, k], place, products, kept })
}

fn line(site: &Site, recipe: &Recipe, role: Role, [m, n, k]: [u64; 3], map: &SourceMap) -> Line {
    let (x, y) = (vec![m, k], vec![m, n]);
    let mut w = match &site.weight {
        Some(w) if w.transposed => vec![n, k],
        _ => vec![k, n],
    };
    if let Some(segments) = site.segments {
        w.insert(0, segments);
    }
    let (sizes, shapes) = match role {
        Role::Forward => ([m, n, k], [x, w]),
        Role::InputGrad => ([m, k, n], [y, w]),
        Role::WeightGrad => ([n, k, m], [y, x]),
    };
    let product = *recipe.product(role);
    let names = if site.weight.is_some() { role.operands() } else { ["x", "y"] };
    let mut shapes = shapes.into_iter();
    let operands = [0, 1].map(|i| {
        let shape = shapes.next().unwrap_or_default();
        match product.operands[i] {
            Some(f) => Operand {
                name: names[i],
                format: typed(&f),
                scales: Some(scale_shape(&f, &shape)),
                shape,
            },
            None => {
                Operand { name: names[i], format: site.compute.name().into(), scales: None, shape }
            }
        }
    });
    let keys =
        [Key::Operand(role, 0), Key::Operand(role, 1), Key::Accumulate(role), Key::Promote(role)];
    let mut why: Vec<String> = vec![];
    for span in keys.iter().filter_map(|key| recipe.places.get(key)) {
        let at = place(map, *span);
        if !why.contains(&at) {
            why.push(at);
        }
    }
    if why.is_empty() {
        why.push(format!("compute = {}", site.compute.name()));
    }
    Line { role, sizes, operands, product, why }
}

/// As the IR writes it: `e4m3<1x128, f32>`.
fn typed(f: &Format) -> String {
    let [rows, cols] = f.group;
    format!("{}<{rows}x{cols}, {}>", f.dtype.name(), f.scale.name())
}

/// One scale for each group of the two last dims.
pub fn scale_shape(format: &Format, shape: &[u64]) -> Vec<u64> {
    let mut scales = shape.to_vec();
    let rank = scales.len();
    for (i, side) in format.group.iter().enumerate() {
        let d = rank - 2 + i;
        scales[d] = scales[d].div_ceil(u64::from(*side));
    }
    scales
}

/// Lines of one file behind its name: `precision.model:24, 27, 28`.
fn shortened(places: &[String]) -> String {
    let mut out = String::new();
    let mut file = "";
    for place in places {
        match place.rsplit_once(':') {
            Some((name, line)) if name == file => out += &format!(", {line}"),
            found => {
                let gap = if out.is_empty() { "" } else { "; " };
                out += &format!("{gap}{place}");
                file = found.map_or("", |(name, _)| name);
            }
        }
    }
    out
}

/// `mla.model:20`.
fn place(map: &SourceMap, span: Span) -> String {
    let path = map.path(span.file);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    format!("{name}:{}", map.line_column(span.file, span.start).line)
}

fn head(row: &Row) -> String {
    let times = |n: u64, what: &str| if n == 1 { String::new() } else { format!(", {n} {what}") };
    format!(
        "{}{}{}{}",
        row.site.path,
        times(row.site.layers, "layers"),
        times(row.site.calls, "times a run"),
        times(row.site.segments.unwrap_or(1), "matrices")
    )
}

fn body(row: &Row) -> String {
    let mut lines: Vec<[String; 5]> = vec![];
    for l in &row.products {
        let [m, n, k] = l.sizes;
        let operand = |o: &Operand| match &o.scales {
            Some(scales) => format!("{} {} {scales:?}", o.name, o.format),
            None => format!("{} {}", o.name, o.format),
        };
        let sum = match (l.product.is_quantized(), l.product.promote) {
            (_, Some(every)) => format!("sum {}, promote {every}", l.product.accumulate.name()),
            (true, None) => format!("sum {}", l.product.accumulate.name()),
            (false, None) => "sum f32".into(),
        };
        lines.push([
            format!("{} {m} x {n} x {k}", l.role.name()),
            operand(&l.operands[0]),
            operand(&l.operands[1]),
            sum,
            shortened(&l.why),
        ]);
    }
    for kept in &row.kept {
        let less = kept.bf16_bytes.saturating_sub(kept.bytes);
        lines.push([
            kept.what.into(),
            format!("{} {:?}", typed(&kept.format), kept.scales),
            match &kept.stored {
                Stored::Here => format!("{} bytes", digits(kept.bytes)),
                Stored::Sent => format!("{} bytes sent", digits(kept.bytes)),
                Stored::With(site) => format!("stored by {site}"),
                Stored::Again => "not stored: computed again".into(),
            },
            match kept.bytes {
                0 => String::new(),
                _ => format!("{} less than bf16", digits(less)),
            },
            kept.why.clone(),
        ]);
    }
    let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let mut out = String::new();
    for l in &lines {
        let cells: Vec<String> =
            l[..4].iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        out += &format!("  {}   {}\n", cells.join("   "), l[4]);
    }
    out
}

fn row_json(row: &Row) -> Value {
    let [m, n, k] = row.sizes;
    json!({
        "site": row.site.path,
        "place": row.place,
        "layers": row.site.layers,
        "calls": row.site.calls,
        "segments": row.site.segments,
        "weight": row.site.weight.as_ref().map(|w| w.name.clone()),
        "rows": m, "n": n, "k": k,
        "products": row.products.iter().map(line_json).collect::<Vec<_>>(),
        "kept": row.kept.iter().map(kept_json).collect::<Vec<_>>(),
    })
}

fn line_json(l: &Line) -> Value {
    let operand = |o: &Operand, format: Option<Format>| {
        json!({
            "name": o.name,
            "shape": o.shape,
            "dtype": format.map_or(o.format.as_str(), |f| f.dtype.name()),
            "group": format.map(|f| f.group),
            "scale": format.map(|f| f.scale.name()),
            "scale_shape": o.scales,
        })
    };
    let formats = l.product.operands;
    json!({
        "role": l.role.name(),
        "m": l.sizes[0], "n": l.sizes[1], "k": l.sizes[2],
        "operands": [operand(&l.operands[0], formats[0]), operand(&l.operands[1], formats[1])],
        "accumulate": l.product.accumulate.name(),
        "promote": l.product.promote,
        "why": l.why,
    })
}

fn kept_json(kept: &Kept) -> Value {
    json!({
        "what": kept.what.replace(' ', "_"),
        "dtype": kept.format.dtype.name(),
        "group": kept.format.group,
        "scale": kept.format.scale.name(),
        "scale_shape": kept.scales,
        "stored": match &kept.stored {
            Stored::Here => "here".to_string(),
            Stored::Sent => "sent".to_string(),
            Stored::With(site) => site.clone(),
            Stored::Again => "computed again".to_string(),
        },
        "bytes": number(kept.bytes),
        "bf16_bytes": number(kept.bf16_bytes),
        "why": kept.why,
    })
}
