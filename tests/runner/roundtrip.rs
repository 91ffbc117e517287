//! `roundtrip`: the text parses, verifies, and prints as it prints when what was printed is parsed.

use weft_ir::text;
use weft_ir::verify::verify;

use crate::case::{Case, Outcome, all};

pub fn run(case: &Case) -> Result<Outcome, String> {
    let module = text::parse(&case.input).map_err(|e| all(&e))?;
    verify(&module).map_err(|e| all(&e))?;
    let printed = text::print(&module);
    let again = text::parse(&printed).map_err(|e| format!("{printed}\n{}", all(&e)))?;
    let reprinted = text::print(&again);
    if reprinted != printed {
        return Err(format!("printed:\n{printed}\nparsed and printed again:\n{reprinted}"));
    }
    // With an expectation the test also fixes how things are spelled.
    if case.expect.is_some() { case.compare(&printed) } else { Ok(Outcome::Passed) }
}
