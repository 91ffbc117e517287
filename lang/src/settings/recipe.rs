//! From a precision block's rules to one recipe for every product.
//!
//! Of the rules that give a key and match a product's site the most specific one speaks: the one
//! whose selector has the most names. A key that no rule gives has its plain value: not quantized,
//! summed in f32, saved as it is.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use weft_ir::dim::Dim;

use super::gemm::{Accumulate, Format, Key, Role, Rule, Value};
use super::precision::Precision;
use crate::diag::Diag;
use crate::lower::Site;
use crate::source::Span;

/// One product of a linear map.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Product {
    /// Left and right; `None` is not quantized.
    pub operands: [Option<Format>; 2],
    pub accumulate: Accumulate,
    /// Terms after which a partial sum is scaled and added in f32.
    pub promote: Option<u32>,
}

impl Product {
    pub fn is_quantized(&self) -> bool {
        self.operands.iter().any(Option::is_some)
    }
}

/// What is done at one site.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recipe {
    pub site: String,
    /// In the order of `Role::ALL`.
    pub products: [Product; 3],
    pub saved_input: Option<Format>,
    pub saved_output: Option<Format>,
    pub dispatched: Option<Format>,
    /// The rule's place, for every key that a rule gave.
    pub places: IndexMap<Key, Span>,
}

impl Recipe {
    /// Whether anything is not as it would be without rules.
    pub fn has_formats(&self) -> bool {
        let saved = [self.saved_input, self.saved_output, self.dispatched];
        saved.iter().any(Option::is_some) || self.products.iter().any(Product::is_quantized)
    }

    /// Whether a rule says that rows are not quantized on their way to experts; where none says
    /// anything they travel as the codes that the product reads.
    pub fn dispatched_plain(&self) -> bool {
        self.places.contains_key(&Key::Dispatched) && self.dispatched.is_none()
    }

    pub fn product(&self, role: Role) -> &Product {
        &self.products[role as usize]
    }
}

/// A recipe for each of `sites`, in their order. What is wrong goes to `diags`.
pub fn recipes(precision: &Precision, sites: &[Site], diags: &mut Vec<Diag>) -> Vec<Recipe> {
    let paths = sites.iter().map(|s| s.path.as_str());
    for rule in &precision.gemms {
        rule.selectors.check("product", paths.clone(), diags);
    }
    let mut resolver = Resolver { rules: &precision.gemms, diags, told: BTreeSet::new() };
    sites.iter().map(|site| resolver.recipe(site)).collect()
}

struct Resolver<'a, 'd> {
    rules: &'a [Rule],
    diags: &'d mut Vec<Diag>,
    /// Places that have been told of: a rule is wrong once, not for every site.
    told: BTreeSet<(Span, Span)>,
}

impl Resolver<'_, '_> {
    fn recipe(&mut self, site: &Site) -> Recipe {
        let mut recipe = Recipe { site: site.path.clone(), ..Recipe::default() };
        let mut keys: Vec<Key> =
            self.rules.iter().flat_map(|r| r.keys.iter().map(|(k, ..)| *k)).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let Some((value, span)) = self.value(site, key) else { continue };
            recipe.places.insert(key, span);
            match (key, value) {
                (Key::Operand(role, i), Value::Format(f)) => {
                    recipe.products[role as usize].operands[i] = f;
                }
                (Key::Accumulate(role), Value::Accumulate(how)) => {
                    recipe.products[role as usize].accumulate = how;
                }
                (Key::Promote(role), Value::Promote(n)) => {
                    recipe.products[role as usize].promote = n;
                }
                (Key::SavedInput, Value::Format(f)) => recipe.saved_input = f,
                (Key::SavedOutput, Value::Format(f)) => recipe.saved_output = f,
                (Key::Dispatched, Value::Format(f)) => recipe.dispatched = f,
                _ => unreachable!("a key is read with its kind of value"),
            }
        }
        self.check(site, &recipe);
        recipe
    }

    /// What the most specific rule says of `key`, and where.
    fn value(&mut self, site: &Site, key: Key) -> Option<(Value, Span)> {
        let mut best: Option<(Value, Span, Span, usize)> = None;
        for rule in self.rules {
            let Some((value, span)) = rule.get(key) else { continue };
            let Some(selector) = rule.selectors.best(&site.path) else { continue };
            let n_names = selector.n_names();
            match best {
                Some((_, _, first, n)) if n == n_names => {
                    if self.told.insert((first, selector.span)) {
                        let why = format!("two rules as specific give `{key}` of `{}`", site.path);
                        let diag = Diag::error(selector.span, why).label(first, "and this one");
                        let hint = "give the path of one of them more names";
                        self.diags.push(diag.hint(hint));
                    }
                }
                Some((.., n)) if n > n_names => {}
                _ => best = Some((value, span, selector.span, n_names)),
            }
        }
        best.map(|(value, span, ..)| (value, span))
    }

    /// A recipe must be one that the site's product can be computed by.
    fn check(&mut self, site: &Site, recipe: &Recipe) {
        if site.weight.is_none() && recipe.has_formats() {
            let at = recipe.places.values().next().copied().unwrap_or(site.span);
            let why = format!("`{}` is a product of two activations", site.path);
            let hint = "formats are for products with a weight: select around it, or give it none";
            self.tell(at, site, Diag::error(at, why).hint(hint));
            return;
        }
        if let (Some(_), None) = (recipe.dispatched, site.segments) {
            let at = recipe.places[&Key::Dispatched];
            let why = format!("no rows are dispatched to `{}`", site.path);
            let hint = "`dispatched` is for products of experts on rows that `dispatch` made";
            self.tell(at, site, Diag::error(at, why).hint(hint));
        }
        if let Some(f) = recipe.dispatched.filter(|f| f.group[0] != 1) {
            let at = recipe.places[&Key::Dispatched];
            let why = format!("rows travel one by one, and {f} has a scale for several");
            let hint = format!("{}(1, {}) has its groups within a row", f.dtype.name(), f.group[1]);
            self.tell(at, site, Diag::error(at, why).hint(hint));
        }
        for role in Role::ALL {
            self.check_product(site, recipe, role);
        }
    }

    fn check_product(&mut self, site: &Site, recipe: &Recipe, role: Role) {
        let product = recipe.product(role);
        let place = |key| recipe.places.get(&key).copied();
        let operand = |i| place(Key::Operand(role, i));
        let [a, b] = role.operands();
        let formats = match product.operands {
            [Some(x), Some(y)] => [x, y],
            [None, None] => {
                // Said alone it would change nothing.
                let key = Key::Accumulate(role);
                let hopper = product.accumulate == Accumulate::Hopper14;
                let at = place(key).or(place(Key::Promote(role)));
                if let (Some(at), true) = (at, hopper || product.promote.is_some()) {
                    let why = format!("`{}` of `{}` is not quantized", role.name(), site.path);
                    let hint = format!("`accumulate` and `promote` need formats of {a} and {b}");
                    self.tell(at, site, Diag::error(at, why).hint(hint));
                }
                return;
            }
            [x, _] => {
                let (has, lacks, at) =
                    if x.is_some() { (a, b, operand(0)) } else { (b, a, operand(1)) };
                let at = at.unwrap_or(site.span);
                let why = format!(
                    "`{}` of `{}` has a format of {has} and none of {lacks}",
                    role.name(),
                    site.path
                );
                let hint = "a product multiplies codes by codes, or plain numbers";
                self.tell(at, site, Diag::error(at, why).hint(hint));
                return;
            }
        };
        // Terms of the sum that share a scale, of each operand.
        let along = [0, 1].map(|i| formats[i].group[contracted(site, role, i)]);
        let stepped = |n: u32, unit: u32| n.is_multiple_of(unit);
        let unit = along[0].min(along[1]).min(product.promote.unwrap_or(u32::MAX));
        for (i, name) in [a, b].into_iter().enumerate() {
            let k = size(site, role);
            let at = operand(i).unwrap_or(site.span);
            if along[i] == 1 && k != Dim::fixed(1) {
                let side = ["rows", "columns"][contracted(site, role, i)];
                let why = format!(
                    "{} of {name} has a scale for every term: `{}` of `{}` sums along its {side}",
                    formats[i],
                    role.name(),
                    site.path
                );
                let [rows, cols] = formats[i].group;
                let f = Format { group: [cols, rows], ..formats[i] };
                self.tell(at, site, Diag::error(at, why).hint(format!("did you mean {f}?")));
            } else if !stepped(along[i], unit) {
                let why = format!(
                    "groups of {} terms of {name} are cut by sums of {unit}: `{}` of `{}`",
                    along[i],
                    role.name(),
                    site.path
                );
                let hint = "groups along a sum and `promote` are multiples of the least of them";
                self.tell(at, site, Diag::error(at, why).hint(hint));
            }
        }
        if let Some(n) = product.promote.filter(|n| !stepped(*n, unit)) {
            let at = place(Key::Promote(role)).unwrap_or(site.span);
            let why = format!(
                "`promote = {n}` cuts groups of {unit} terms: `{}` of `{}`",
                role.name(),
                site.path
            );
            let hint = format!("a multiple of {unit}, such as {}", n.div_ceil(unit) * unit);
            self.tell(at, site, Diag::error(at, why).hint(hint));
        }
    }

    /// One place is told of once.
    fn tell(&mut self, at: Span, site: &Site, diag: Diag) {
        if self.told.insert((at, at)) {
            let diag = if at == site.span { diag } else { diag.label(site.span, "this product") };
            self.diags.push(diag);
        }
    }
}

/// The dim of a format's group (0: rows) that a product sums along.
///
/// x is [rows, k], dy is [rows, n], and w is as it is stored.
fn contracted(site: &Site, role: Role, operand: usize) -> usize {
    let by_rows = site.weight.as_ref().is_some_and(|w| w.transposed);
    match (role, operand) {
        (Role::Forward, 0) | (Role::InputGrad, 0) => 1,
        (Role::Forward, _) => usize::from(by_rows),
        (Role::InputGrad, _) => usize::from(!by_rows),
        (Role::WeightGrad, _) => 0,
    }
}

/// Terms of the sum, where their number is one dim.
fn size(site: &Site, role: Role) -> Dim {
    match role {
        Role::Forward => site.k,
        Role::InputGrad => site.n,
        Role::WeightGrad => weft_ir::dim::product(&site.rows).unwrap_or(site.k),
    }
}
