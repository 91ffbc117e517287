//! Selectors of modules and products by their path: `"layers.*.self_attn.**"`.
//!
//! A path is a sequence of names with dots between; `*` stands for one name and `**` for any number
//! of them, none included. The more names a selector says, the more specific it is.

use crate::ast::{self, Key};
use crate::diag::{self, Diag};
use crate::source::Span;

/// One selector of a rule.
#[derive(Clone, PartialEq, Debug)]
pub struct Selector {
    pub text: String,
    pub span: Span,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Debug)]
enum Part {
    Name(String),
    One,
    Any,
}

impl Selector {
    /// The sites that a selector given on the command line matches, or why it matches none.
    pub fn select<'a>(text: &str, paths: &[&'a str]) -> Result<Vec<&'a str>, String> {
        let key = Key { text: text.into(), quoted: true, span: Span::default() };
        let told = |diag: Diag| match diag.hint {
            Some(hint) => format!("{}; {hint}", diag.message),
            None => diag.message,
        };
        let selector = Selector::parse(&key).map_err(told)?;
        selector.matches_some("product", paths.iter().copied()).map_err(told)?;
        Ok(paths.iter().copied().filter(|p| selector.matches(p)).collect())
    }

    /// The selector that `key` says.
    fn parse(key: &Key) -> Result<Selector, Diag> {
        let part = |text: &str| match text {
            "*" => Ok(Part::One),
            "**" => Ok(Part::Any),
            "" => Err("a name is missing between two dots"),
            name if name.contains('*') => Err("a `*` stands for a whole name of the path"),
            name => Ok(Part::Name(name.to_string())),
        };
        let parts: Result<Vec<Part>, &str> = key.text.split('.').map(part).collect();
        match parts {
            Ok(parts) => Ok(Selector { text: key.text.clone(), span: key.span, parts }),
            Err(why) => {
                let diag = Diag::error(key.span, format!("selector \"{}\": {why}", key.text));
                Err(diag.hint("`*` is one name, `**` any number: \"layers.*.mlp.**\""))
            }
        }
    }

    /// How many names it says: of two selectors of one thing the one that says more wins.
    pub fn n_names(&self) -> usize {
        self.parts.iter().filter(|p| matches!(p, Part::Name(_))).count()
    }

    pub fn matches(&self, path: &str) -> bool {
        let names: Vec<&str> = if path.is_empty() { vec![] } else { path.split('.').collect() };
        matches(&self.parts, &names)
    }

    /// An error if it matches none of `paths`, with the path that is near.
    pub fn matches_some<'a>(
        &self,
        what: &str,
        paths: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), Diag> {
        if paths.clone().any(|p| self.matches(p)) {
            return Ok(());
        }
        let why = format!("selector \"{}\" matches no {what}", self.text);
        let diag = Diag::error(self.span, why);
        Err(match self.near(paths) {
            Some(near) => diag.hint(format!("did you mean \"{near}\"?")),
            None => diag.hint("`weft explain --precision NAME` lists them"),
        })
    }

    /// The selector with one of its names put right so that it matches.
    fn near<'a>(&self, paths: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
        let names: Vec<&str> = {
            let mut all: Vec<&str> = paths.clone().flat_map(|p| p.split('.')).collect();
            all.sort();
            all.dedup();
            all
        };
        for (i, part) in self.parts.iter().enumerate() {
            let Part::Name(name) = part else { continue };
            let Some(near) = diag::suggest(name, names.iter().copied()) else { continue };
            let mut parts = self.parts.clone();
            parts[i] = Part::Name(near.to_string());
            let found = Selector { parts, ..self.clone() };
            if paths.clone().any(|p| found.matches(p)) {
                return Some(found.spelled());
            }
        }
        None
    }

    fn spelled(&self) -> String {
        let part = |p: &Part| match p {
            Part::Name(name) => name.clone(),
            Part::One => "*".to_string(),
            Part::Any => "**".to_string(),
        };
        self.parts.iter().map(part).collect::<Vec<_>>().join(".")
    }
}

fn matches(parts: &[Part], names: &[&str]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((Part::Any, rest)), None) => matches(rest, names),
        (Some((Part::Any, rest)), Some((_, later))) => {
            matches(rest, names) || matches(parts, later)
        }
        (Some(_), None) => false,
        (Some((Part::One, rest)), Some((_, later))) => matches(rest, later),
        (Some((Part::Name(name), rest)), Some((first, later))) => {
            name == first && matches(rest, later)
        }
    }
}

/// The selectors of one rule, `module "a" "b" optional { .. }`.
#[derive(Clone, PartialEq, Debug)]
pub struct Selectors {
    pub all: Vec<Selector>,
    /// Each may match nothing: rules of a library, which a model need not have a place for.
    pub optional: bool,
    /// The whole rule.
    pub span: Span,
}

impl Selectors {
    /// What stands between a rule's key and its brace.
    pub fn of(entry: &ast::Entry, labels: &[Key], diags: &mut Vec<Diag>) -> Option<Selectors> {
        let n_errors = diags.len();
        let optional = |k: &Key| !k.quoted && k.text == "optional";
        let mut all: Vec<Selector> = vec![];
        for key in labels.iter().filter(|k| !optional(k)) {
            if !key.quoted {
                let why = format!("a selector stands in quotes, found `{}`", key.text);
                let hint = "the one word beside selectors is `optional`: they may match nothing";
                diags.push(Diag::error(key.span, why).hint(hint));
                continue;
            }
            match Selector::parse(key) {
                Ok(selector) => match all.iter().find(|s| s.text == selector.text) {
                    None => all.push(selector),
                    Some(first) => {
                        let why = format!("selector \"{}\" stands here twice", selector.text);
                        diags.push(Diag::error(selector.span, why).label(first.span, "first here"));
                    }
                },
                Err(diag) => diags.push(diag),
            }
        }
        if all.is_empty() && diags.len() == n_errors {
            let why = format!("`{}` needs a selector of what it is for", entry.key.text);
            let hint = format!("{} \"layers.*.mlp.**\" {{ .. }}", entry.key.text);
            diags.push(Diag::error(entry.key.span, why).hint(hint));
        }
        let optional = labels.iter().any(optional);
        (diags.len() == n_errors).then_some(Selectors { all, optional, span: entry.span })
    }

    /// The most specific of its selectors that matches `path`.
    pub fn best(&self, path: &str) -> Option<&Selector> {
        let matching = self.all.iter().filter(|s| s.matches(path));
        // Of equals the first, whichever it is: they say the same.
        matching.rev().max_by_key(|s| s.n_names())
    }

    /// An error for every selector that matches none of `paths`.
    pub fn check<'a>(
        &self,
        what: &str,
        paths: impl Iterator<Item = &'a str> + Clone,
        diags: &mut Vec<Diag>,
    ) {
        if !self.optional {
            let missing = self.all.iter().filter_map(|s| s.matches_some(what, paths.clone()).err());
            diags.extend(missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FileId;

    fn selector(text: &str) -> Selector {
        let span = Span::new(FileId(0), 0, 0);
        Selector::parse(&Key { text: text.into(), quoted: true, span }).expect("it is one")
    }

    #[test]
    fn stars_are_names() {
        for (text, path, matches) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "mtp.lm_head", false),
            ("*.mlp", "layers.mlp", true),
            ("*.mlp", "layers.1.mlp", false),
            ("**.gate", "gate", true),
            ("**.gate", "layers.1.mlp.gate", true),
            ("layers.**", "layers", true),
            ("layers.**.up_proj", "layers.1.mlp.experts.up_proj", true),
            ("layers.*.mlp.**", "layers.1.self_attn.o_proj", false),
            ("**", "", true),
            ("*", "", false),
        ] {
            assert_eq!(selector(text).matches(path), matches, "{text} of {path}");
        }
    }

    #[test]
    fn more_names_are_more_specific() {
        let n: Vec<usize> =
            ["**", "**.gate", "layers.1.**"].iter().map(|s| selector(s).n_names()).collect();
        assert_eq!(n, [0, 1, 2]);
    }
}
