//! What kernels of attention have in common: from parameters, shared memory and what threads do to
//! what is compiled and how it is launched.

use weft_codegen::emit::Cg;
use weft_codegen::object::KernelSource;

use super::signature::{Bound, Launch, Signature};
use crate::tiles::roles::THREADS;

pub trait Template: Clone + Send + Sync + 'static {
    /// Equal names mean equal code.
    fn name(&self) -> String;

    /// Why there is no such kernel.
    fn check(&self) -> Result<(), String>;

    fn signature(&self) -> Signature;

    fn shared_bytes(&self) -> u32;

    /// What the threads of a CTA do.
    fn body<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>);

    /// The kernel, to be compiled.
    fn source(&self, label: &str) -> KernelSource {
        let (template, name) = (self.clone(), self.name());
        let source = KernelSource::new(name, label, move |cg: &Cg| template.emit(cg));
        KernelSource { cta: self.signature().cta(self.shared_bytes()), ..source }
    }

    fn emit(&self, cg: &Cg<'_>) {
        if let Err(why) = self.check() {
            panic!("{why}");
        }
        let signature = self.signature();
        cg.device_kernel(&self.name(), THREADS, &signature.params(), |values| {
            self.body(cg, &signature.bind(cg, values));
        });
    }

    /// How it is launched, on as many CTAs as one likes.
    fn launch(&self) -> Launch {
        self.signature().launch(self.name(), self.shared_bytes())
    }
}
