//! What is said of a GPU when kernels are compiled for it.

use anyhow::{Result, bail};
use weft_backend_cuda::Cuda;
use weft_backend_cuda::gemm::select::Budget;
use weft_runtime::device::{DeviceKind, cuda};

use crate::graphs::Target;

/// Options of a GPU; a CPU has none.
#[derive(clap::Args, Clone, Debug)]
pub struct GpuArgs {
    /// Multiprocessors that kernels which stay until all is done may take, on a GPU: others are
    /// left to what runs beside them [default: all of --device cuda where it is here, else 132]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sm_budget: Option<u32>,
    /// Streams that kernels too narrow for a GPU are spread over
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=8))]
    streams: u32,
}

impl GpuArgs {
    pub fn target(&self, device: DeviceKind) -> Result<Target> {
        let given = self.given().into_iter().find(|(_, given)| *given);
        match (device, given) {
            (DeviceKind::Cpu, Some((name, _))) => bail!("{name} is for GPUs: give --device too"),
            (DeviceKind::Cpu, None) => Ok(Target::Here),
            (DeviceKind::Ptx, _) => Ok(Target::Cuda(self.machine(Budget::WHOLE.sms))),
            (DeviceKind::Cuda, _) => Ok(Target::Cuda(self.machine(multiprocessors_here()))),
        }
    }

    /// A GPU that may be another's.
    pub fn anywhere(&self) -> Target {
        Target::Cuda(self.machine(Budget::WHOLE.sms))
    }

    /// Which were given, by name.
    pub fn given(&self) -> [(&'static str, bool); 2] {
        [("--sm-budget", self.sm_budget.is_some()), ("--streams", self.streams > 1)]
    }

    fn machine(&self, sms: u32) -> Cuda {
        let budget = Budget { sms: self.sm_budget.unwrap_or(sms) };
        Cuda { budget, streams: self.streams }
    }
}

/// Those of the GPU that a run here takes.
pub fn multiprocessors_here() -> u32 {
    let fits = cuda::probe().ok().and_then(|d| d.gpus.into_iter().find(|g| g.unfit().is_none()));
    fits.map_or(Budget::WHOLE.sms, |gpu| gpu.multiprocessors.max(1))
}
