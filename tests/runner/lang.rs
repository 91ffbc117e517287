//! `lang [train|infer], [B=4], [S<=16], [T<=32], [segments], [shrink], [set name=value],
//! [precision NAME]`: what is said about a `.model` file, as a terminal shows it, and if there is
//! no error the IR it becomes, without places. `# config: {..}` is the `config.json` of a
//! checkpoint. `use` finds files beside the test or in `models/`.

use std::path::Path;

use weft_ir::text;
use weft_ir::verify::verify;
use weft_lang::diag::{Diag, render_all, sort};
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};
use weft_lang::source::SourceMap;

use crate::case::{Case, Outcome, all, without_places};

pub fn run(case: &Case) -> Result<Outcome, String> {
    let mut purpose = Purpose::Train;
    let (batch, seq) = (Size::Bounded(4), Size::Bounded(16));
    let mut settings = Settings { batch, seq, segments: false, cache: None };
    let mut overrides = Overrides::default();
    for option in case.args.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        match option {
            "train" => purpose = Purpose::Train,
            "infer" => purpose = Purpose::Infer,
            "segments" => settings.segments = true,
            "shrink" => overrides.shrink = true,
            _ if option.starts_with("precision ") => {
                overrides.precision = Some(option["precision ".len()..].trim().into());
            }
            _ if option.starts_with("set ") => {
                let set = option["set ".len()..].split_once('=').ok_or("`set name=value`")?;
                overrides.sets.push((set.0.trim().into(), set.1.trim().into()));
            }
            _ => match size(option).ok_or_else(|| format!("no option `{option}`"))? {
                ("B", size) => settings.batch = size,
                ("S", size) => settings.seq = size,
                ("T", size) => settings.cache = Some(size),
                (name, _) => return Err(format!("no size `{name}`: there are B, S and T")),
            },
        }
    }

    for (_, config) in case.directives("config") {
        overrides.config = Some(serde_json::from_str(config).map_err(|e| e.to_string())?);
    }

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(&case.path).parent().unwrap_or(Path::new(""));
    let read = |path: &Path| {
        if path == Path::new(&case.path) {
            return Ok(case.input.clone());
        }
        let beside = std::fs::read_to_string(root.join(path));
        let shipped = path.strip_prefix(folder).unwrap_or(path);
        beside.or_else(|_| std::fs::read_to_string(root.join("models").join(shipped)))
    };
    let (program, map, mut diags) = weft_lang::load(Path::new(&case.path), &read);
    let parsed = !diags.iter().any(Diag::is_error);
    let tree = if parsed { elaborate(&program, &map, &overrides, &mut diags) } else { None };
    let lowered = tree.and_then(|tree| lower(&program, &tree, &map, purpose, settings, &mut diags));
    let mut found = said(&map, &mut diags);
    if let Some(lowered) = lowered.filter(|_| !diags.iter().any(Diag::is_error)) {
        let printed = text::print(&lowered.module);
        verify(&lowered.module).map_err(|e| format!("{}\n{printed}", all(&e)))?;
        found += &text::print(&without_places(&lowered.module));
    }
    case.compare(&found)
}

/// `B=4` or `S<=16`.
fn size(option: &str) -> Option<(&str, Size)> {
    if let Some((name, max)) = option.split_once("<=") {
        return Some((name.trim(), Size::Bounded(max.trim().parse().ok()?)));
    }
    let (name, n) = option.split_once('=')?;
    Some((name.trim(), Size::Fixed(n.trim().parse().ok()?)))
}

/// The diagnostics in the order of the text.
fn said(map: &SourceMap, diags: &mut [Diag]) -> String {
    sort(diags);
    render_all(map, diags, false)
}
