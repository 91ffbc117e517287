//! What a precision block's rules resolve to, as the passes take it.

use weft_lang::lower::Lowered;
use weft_lang::settings::gemm::{Accumulate, Format, Role};
use weft_lang::settings::recipe::{Product, Recipe};
use weft_passes::policy::{self, Policy};

/// A recipe for each product of a lowered model; none where nothing is quantized.
pub fn policy(lowered: &Lowered) -> Policy {
    match lowered.recipes.iter().any(Recipe::has_formats) {
        true => lowered.recipes.iter().map(|r| (r.site.clone(), recipe(r))).collect(),
        false => Policy::new(),
    }
}

fn recipe(recipe: &Recipe) -> policy::Recipe {
    policy::Recipe {
        forward: product(recipe.product(Role::Forward)),
        input_grad: product(recipe.product(Role::InputGrad)),
        weight_grad: product(recipe.product(Role::WeightGrad)),
        saved_input: recipe.saved_input.map(format),
        saved_output: recipe.saved_output.map(format),
        dispatched: recipe.dispatched.map(format),
        dispatched_plain: recipe.dispatched_plain(),
    }
}

fn product(product: &Product) -> policy::Product {
    let operands = match product.operands {
        [Some(a), Some(b)] => Some([format(a), format(b)]),
        _ => None,
    };
    let hopper14 = product.accumulate == Accumulate::Hopper14;
    policy::Product { operands, hopper14, promote: product.promote }
}

fn format(f: Format) -> policy::Format {
    policy::Format { dtype: f.dtype, group: f.group, scale: f.scale, floor: f.floor }
}
