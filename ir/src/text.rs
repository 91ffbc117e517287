//! The text form of the IR; the crate's doc shows it.
//!
//! ```text
//! file     = ["weft-ir 1"] ["module" name] ["dims" "{" dim-decl, .. "}"]
//!            ["axes" "{" name "=" int, .. "}"] store* func*
//! dim-decl = name "<=" int | name "=" "ragged" "(" int ")" dim
//! store    = ("weight" | "state" | "schedule") @name [":" type] ["at" string, ..] ["from" ints]
//!            "init" (number | "drawn")
//! func     = "func" @name "(" %name ":" type, .. ")" "->" "(" [name ":"] type, .. ")"
//!            ["donates" "(" int "->" int, .. ")"] "{" op* "return" %name, .. "}"
//! op       = [%name, .. "="] op-name %name, .. ["{" name "=" attr, .. "}"] [":" type, ..]
//!            ["#" place, ..]
//! type     = ["state"] dtype ["<" int "x" int "," dtype ["," "col"] ">"]
//!            "[" dim ["{" axis "}"], .. "]"
//! dim      = int | [int "*"] symbol "*" symbol ..
//! place    = file ":" line ":" column
//! ```
//! Names are letters, digits, `_` and `.`; any other name stands in quotes (`%"a b"`). A value
//! called by a number has no name: the printer counts such values in the order in which a function
//! shows them. `//` starts a comment. Attributes print in the order of the op's row, flags that are
//! false not at all.

mod lex;
mod parse;
mod print;

pub use parse::{FuncLines, Lines, TextError, parse, parse_located};
pub use print::{print, print_attr, print_dim, print_func, print_op, print_type, value_names};
