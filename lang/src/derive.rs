//! `model Nano from DeepSeekV3 { .. }`: the base's members, with what the new text says in their
//! place.
//!
//! Done on the tree, before names mean anything: every member keeps the span of the file it was
//! written in, so messages and provenance point there. A constant takes the base's place, so what
//! follows it sees the new value. Blocks of one kind replace all of that kind.

use crate::ast::*;
use crate::diag::Diag;

/// Every model of `program` with the blocks next to it and its base's members put in; `base` is
/// none then.
pub fn resolve(program: &mut Program, diags: &mut Vec<Diag>) {
    program.files.iter_mut().for_each(take_in_blocks);
    let written: Vec<(FileId, Model)> =
        program.files.iter().flat_map(|f| models(f).map(|m| (f.id, m.clone()))).collect();
    for file in &mut program.files {
        for item in &mut file.items {
            if let Item::Model(model) = item
                && model.base.is_some()
            {
                let members = derive(file.id, model, &written, &mut vec![], diags);
                *model = Model { base: None, members, ..model.clone() };
            }
        }
    }
}

fn models(file: &File) -> impl Iterator<Item = &Model> {
    file.items.iter().filter_map(|item| match item {
        Item::Model(model) => Some(model),
        Item::Module(_) | Item::Block(_) => None,
    })
}

/// Blocks at top level of a file with a model belong to the model.
fn take_in_blocks(file: &mut File) {
    if models(file).next().is_none() {
        return;
    }
    let is_block = |item: &mut Item| matches!(item, Item::Block(_));
    let blocks: Vec<Item> = file.items.extract_if(.., is_block).collect();
    let blocks = blocks.into_iter().filter_map(|item| match item {
        Item::Block(block) => Some(Member::Block(block)),
        Item::Module(_) | Item::Model(_) => None,
    });
    let model = file.items.iter_mut().find_map(|item| match item {
        Item::Model(model) => Some(model),
        Item::Module(_) | Item::Block(_) => None,
    });
    if let Some(model) = model {
        model.members.extend(blocks);
    }
}

/// The members of `model`, those of its bases among them. `chain` holds the names on the way here.
fn derive(
    file: FileId,
    model: &Model,
    written: &[(FileId, Model)],
    chain: &mut Vec<String>,
    diags: &mut Vec<Diag>,
) -> Vec<Member> {
    let Some(name) = &model.base else { return model.members.clone() };
    chain.push(model.name.text.clone());
    if chain.contains(&name.text) {
        let circle = format!("{} from {}", chain.join(" from "), name.text);
        diags.push(Diag::error(name.span, format!("a model cannot come from itself: {circle}")));
        return model.members.clone();
    }
    let others = || written.iter().filter(|(other, _)| *other != file);
    let Some((base_file, base)) = others().find(|(_, m)| m.name.text == name.text) else {
        let near = others().map(|(_, m)| m.name.text.as_str());
        let diag = Diag::error(name.span, format!("no model `{}` in the files used", name.text));
        let diag = diag.hint("`use` the file that has it");
        diags.push(diag.did_you_mean(&name.text, near));
        return model.members.clone();
    };
    let members = derive(*base_file, base, written, chain, diags);
    let base = Model { members, ..base.clone() };
    merge(base, model, diags)
}

fn merge(base: Model, model: &Model, diags: &mut Vec<Diag>) -> Vec<Member> {
    let mut members = base.members;
    let replaced = |m: &Member| model.members.iter().any(|new| takes_all_of(new, m));
    members.retain(|m| !replaced(m));
    for new in &model.members {
        let place = members.iter().position(|old| same_name(old, new));
        match (place, new) {
            (Some(at), _) => members[at] = over(&members[at], new, diags),
            (None, Member::Constant(c)) => {
                let known = members.iter().filter_map(|m| match m {
                    Member::Constant(c) => Some(c.name.text.as_str()),
                    _ => None,
                });
                let (name, from) = (&c.name.text, &base.name.text);
                let why = format!("model `{from}` has no constant `{name}`");
                let diag = Diag::error(c.name.span, why)
                    .hint("a model `from` another only gives its constants new values")
                    .did_you_mean(name, known);
                diags.push(diag.label(base.name.span, "the base is here"));
            }
            (None, _) => members.push(new.clone()),
        }
    }
    members
}

/// Whether `new` stands for everything of the kind of `old`: the bodies and the blocks.
fn takes_all_of(new: &Member, old: &Member) -> bool {
    match (new, old) {
        (Member::Block(new), Member::Block(old)) => new.kind == old.kind,
        (Member::Forward(_), Member::Forward(_))
        | (Member::Loss(_), Member::Loss(_))
        | (Member::Config(_), Member::Config(_))
        | (Member::Shrink(_), Member::Shrink(_)) => true,
        _ => false,
    }
}

fn same_name(old: &Member, new: &Member) -> bool {
    match (name(old), name(new)) {
        (Some(old), Some(new)) => old.text == new.text,
        _ => false,
    }
}

fn name(member: &Member) -> Option<&Name> {
    match member {
        Member::Constant(m) => Some(&m.name),
        Member::Submodule(m) => Some(&m.name),
        Member::Copy(m) => Some(&m.name),
        Member::Weight(m) => Some(&m.name),
        Member::State(m) => Some(&m.name),
        Member::Schedule(m) => Some(&m.name),
        Member::If(_)
        | Member::Forward(_)
        | Member::Update(_)
        | Member::Loss(_)
        | Member::Config(_)
        | Member::Shrink(_)
        | Member::Block(_) => None,
    }
}

/// `new` in the place of `old`; a constant stays optional and keeps its words.
fn over(old: &Member, new: &Member, diags: &mut Vec<Diag>) -> Member {
    match (old, new) {
        (Member::Constant(old), Member::Constant(new)) => {
            let mut new = new.clone();
            new.optional |= old.optional;
            if let ConstantValue::Enumeration(words) = &old.value
                && let ConstantValue::Expr(value) = &new.value
            {
                new.value = ConstantValue::Enumeration(chosen(words, value, &new.name, diags));
            }
            Member::Constant(new)
        }
        (old, new) if std::mem::discriminant(old) == std::mem::discriminant(new) => new.clone(),
        (old, new) => {
            let what = name(new).map_or("", |n| n.text.as_str());
            let diag = Diag::error(new.span(), format!("`{what}` is something else in the base"));
            diags.push(diag.label(old.span(), "declared here"));
            old.clone()
        }
    }
}

/// The words of an enumeration with the one that `value` names first.
fn chosen(words: &[Name], value: &Expr, of: &Name, diags: &mut Vec<Diag>) -> Vec<Name> {
    let word = match &value.kind {
        ExprKind::Path(path) => path.single(),
        _ => None,
    };
    let all: Vec<&str> = words.iter().map(|w| w.text.as_str()).collect();
    match word {
        Some(word) if all.contains(&word.text.as_str()) => {
            let others = words.iter().filter(|w| w.text != word.text);
            std::iter::once(word).chain(others).cloned().collect()
        }
        _ => {
            let found =
                word.map_or("another kind of value".to_string(), |w| format!("`{}`", w.text));
            let why = format!("`{}` is one of {}, found {found}", of.text, all.join(", "));
            let diag = Diag::error(value.span, why);
            let near = word.map_or("", |w| w.text.as_str());
            diags.push(diag.did_you_mean(near, all));
            words.to_vec()
        }
    }
}
