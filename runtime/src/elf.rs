//! Loads a kernel object: an x86-64 ELF relocatable file into memory that can be executed.
//!
//! All sections that occupy memory go into one mapping, which is written first and read-execute
//! after (never both). Accepted relocations are `R_X86_64_PC32`, `PLT32`, `PC64` and `64`. Refused
//! are those of code that is not position-independent (`32`, `32S`), of a global offset table and
//! of thread-local storage, and with them data a kernel would write. The only undefined symbols
//! bound are `memcpy`, `memmove` and `memset`: each is called through a stub in the mapping, since
//! the C library may be further away than a 32-bit displacement reaches.

use memmap2::{Mmap, MmapMut};
use object::elf;
use object::read::elf::ElfFile64;
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, Relocation, RelocationFlags,
    RelocationTarget, SectionFlags, SectionIndex, SymbolIndex, SymbolSection,
};
use std::collections::BTreeMap;
use thiserror::Error;

/// The kernel ABI, see `weft_graph`.
pub type KernelFn = unsafe extern "C" fn(
    buffers: *const *mut u8,
    scalars: *const i64,
    begin: i64,
    end: i64,
    scratch: *mut u8,
);

#[derive(Debug, Error)]
#[error("object {object}: {reason}")]
pub struct ElfError {
    pub object: String,
    pub reason: String,
}

/// An object in memory, ready to be called.
#[derive(Debug)]
pub struct Code {
    object: String,
    map: Mmap,
    /// Offset of each global function in `map`.
    functions: BTreeMap<String, usize>,
}

/// `jmp *0(%rip)` and the 64-bit address it reads.
const STUB_BYTES: usize = 16;
const STUB_JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const SECTION_ALIGN_MAX: u64 = 4096;
const SIZE_BYTES_MAX: u64 = 1 << 30;

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
    fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
    fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8;
}

/// The functions of the C library a kernel may call.
fn bound_functions() -> [(&'static str, usize); 3] {
    let copy: unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8 = memcpy;
    let shift: unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8 = memmove;
    let fill: unsafe extern "C" fn(*mut u8, i32, usize) -> *mut u8 = memset;
    [("memcpy", copy as usize), ("memmove", shift as usize), ("memset", fill as usize)]
}

impl Code {
    /// Loads an object; `name` is what errors call it.
    pub fn load(name: &str, bytes: &[u8]) -> Result<Code, ElfError> {
        load(name, bytes).map_err(|reason| ElfError { object: name.into(), reason })
    }

    /// The kernel under this symbol.
    pub fn kernel(&self, symbol: &str) -> Result<KernelFn, ElfError> {
        let &offset = self.functions.get(symbol).ok_or_else(|| ElfError {
            object: self.object.clone(),
            reason: format!("has no function {symbol}"),
        })?;
        let address = self.map[offset..].as_ptr();
        // SAFETY: the address is that of a function in executable memory; that it has this
        // signature is the promise of the compiler that wrote the graph, as for any program.
        Ok(unsafe { std::mem::transmute::<*const u8, KernelFn>(address) })
    }

    /// Names of the functions the object defines.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }
}

type File<'a> = ElfFile64<'a, LittleEndian>;

/// Where each section and stub lies in the mapping.
struct Layout {
    sections: BTreeMap<usize, Placed>,
    /// Offset of the stub and address of the function of each name in `bound_functions`.
    stubs: BTreeMap<&'static str, (usize, usize)>,
    size_bytes: usize,
}

#[derive(Clone, Copy)]
struct Placed {
    offset: usize,
    size_bytes: usize,
}

fn load(name: &str, bytes: &[u8]) -> Result<Code, String> {
    let file = File::parse(bytes).map_err(|error| format!("is not a 64-bit ELF file: {error}"))?;
    let header = file.elf_header();
    if header.e_type.get(LittleEndian) != elf::ET_REL
        || header.e_machine.get(LittleEndian) != elf::EM_X86_64
    {
        return Err("is not a relocatable x86-64 object".into());
    }
    let layout = lay_out(&file)?;
    let mut map = MmapMut::map_anon(layout.size_bytes.max(1))
        .map_err(|error| format!("no memory for {} bytes: {error}", layout.size_bytes))?;
    for section in file.sections() {
        if let Some(placed) = layout.sections.get(&section.index().0) {
            let data = section.data().map_err(|error| error.to_string())?;
            map[placed.offset..placed.offset + data.len()].copy_from_slice(data);
        }
    }
    for &(offset, address) in layout.stubs.values() {
        let stub = &mut map[offset..offset + STUB_BYTES];
        stub[..6].copy_from_slice(&STUB_JUMP);
        stub[6..14].copy_from_slice(&(address as u64).to_le_bytes());
    }
    relocate(&file, &layout, &mut map)?;
    let functions = functions(&file, &layout);
    let map = map.make_exec().map_err(|error| format!("cannot be made executable: {error}"))?;
    Ok(Code { object: name.into(), map, functions })
}

fn lay_out(file: &File) -> Result<Layout, String> {
    let mut sections = BTreeMap::new();
    let mut end = 0u64;
    for section in file.sections() {
        let name = section.name().map_err(|error| error.to_string())?;
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        // Unwind tables are for debuggers, which do not look into this mapping.
        let needed = sh_flags.contains(elf::SHF_ALLOC) && name != ".eh_frame";
        if !needed || section.size() == 0 {
            continue;
        }
        if sh_flags.contains(elf::SHF_TLS) {
            return Err(format!("section {name} is thread-local"));
        }
        // Pointers that are constant after relocation: jump tables.
        if sh_flags.contains(elf::SHF_WRITE) && !name.starts_with(".data.rel.ro") {
            return Err(format!("section {name} is writable"));
        }
        let align = section.align().max(1);
        if !align.is_power_of_two() || align > SECTION_ALIGN_MAX {
            return Err(format!("section {name} is aligned to {align}"));
        }
        let offset = end.next_multiple_of(align);
        end = offset.saturating_add(section.size());
        if end > SIZE_BYTES_MAX {
            return Err(format!("section {name} has {} bytes", section.size()));
        }
        let placed = Placed { offset: offset as usize, size_bytes: section.size() as usize };
        sections.insert(section.index().0, placed);
    }
    let mut size_bytes = (end as usize).next_multiple_of(STUB_BYTES);
    let mut stubs = BTreeMap::new();
    for (symbol, address) in bound_functions() {
        stubs.insert(symbol, (size_bytes, address));
        size_bytes += STUB_BYTES;
    }
    Ok(Layout { sections, stubs, size_bytes })
}

fn relocate(file: &File, layout: &Layout, map: &mut MmapMut) -> Result<(), String> {
    let base = map.as_ptr() as u64;
    for section in file.sections() {
        let Some(&placed) = layout.sections.get(&section.index().0) else { continue };
        for (position, relocation) in section.relocations() {
            let target = target_offset(file, layout, &relocation)?;
            let value = base.wrapping_add(target).wrapping_add(relocation.addend() as u64);
            let place = (base + placed.offset as u64).wrapping_add(position);
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            let written = match r_type {
                elf::R_X86_64_64 => value.to_le_bytes().to_vec(),
                elf::R_X86_64_PC64 => value.wrapping_sub(place).to_le_bytes().to_vec(),
                elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
                    let distance = value.wrapping_sub(place) as i64;
                    let distance = i32::try_from(distance)
                        .map_err(|_| format!("a displacement of {distance} bytes is too far"))?;
                    distance.to_le_bytes().to_vec()
                }
                elf::R_X86_64_NONE => continue,
                refused => {
                    return Err(format!(
                        "relocation {} against {} is refused: {}",
                        refused.0,
                        symbol_name(file, &relocation),
                        why_refused(refused)
                    ));
                }
            };
            let inside = position
                .checked_add(written.len() as u64)
                .is_some_and(|end| end <= placed.size_bytes as u64);
            if !inside {
                return Err(format!("a relocation at {position} is outside its section"));
            }
            let start = placed.offset + position as usize;
            map[start..start + written.len()].copy_from_slice(&written);
        }
    }
    Ok(())
}

fn why_refused(r_type: elf::RelocationType) -> &'static str {
    match r_type {
        elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_16 | elf::R_X86_64_8 => {
            "the code is not position-independent"
        }
        elf::R_X86_64_GOT32
        | elf::R_X86_64_GOTPCREL
        | elf::R_X86_64_GOTPCRELX
        | elf::R_X86_64_REX_GOTPCRELX
        | elf::R_X86_64_GOTOFF64
        | elf::R_X86_64_GOTPC32 => "a kernel has no global offset table",
        elf::R_X86_64_TLSGD
        | elf::R_X86_64_TLSLD
        | elf::R_X86_64_DTPOFF32
        | elf::R_X86_64_GOTTPOFF
        | elf::R_X86_64_TPOFF32 => "a kernel has no thread-local storage",
        _ => "it is not one a kernel needs",
    }
}

/// Where a relocation points, as an offset in the mapping.
fn target_offset(file: &File, layout: &Layout, relocation: &Relocation) -> Result<u64, String> {
    match relocation.target() {
        RelocationTarget::Symbol(index) => symbol_offset(file, layout, index),
        RelocationTarget::Section(index) => section_offset(layout, index, "a section"),
        _ => Err("a relocation has no target".into()),
    }
}

fn symbol_offset(file: &File, layout: &Layout, index: SymbolIndex) -> Result<u64, String> {
    let symbol = file.symbol_by_index(index).map_err(|error| error.to_string())?;
    let name = symbol.name().map_err(|error| error.to_string())?;
    match symbol.section() {
        SymbolSection::Section(section) => {
            let offset = section_offset(layout, section, name)?;
            Ok(offset.wrapping_add(symbol.address()))
        }
        SymbolSection::Undefined => match layout.stubs.get(name) {
            Some(&(offset, _)) => Ok(offset as u64),
            None => Err(format!("undefined symbol {name}")),
        },
        _ => Err(format!("symbol {name} is in no section")),
    }
}

fn section_offset(layout: &Layout, index: SectionIndex, what: &str) -> Result<u64, String> {
    let placed = layout.sections.get(&index.0);
    placed
        .map(|placed| placed.offset as u64)
        .ok_or_else(|| format!("{what} is in a section that is not loaded"))
}

/// What a relocation is against, for errors; a symbol without a name stands for its section.
fn symbol_name(file: &File, relocation: &Relocation) -> String {
    let RelocationTarget::Symbol(index) = relocation.target() else { return "a section".into() };
    let Ok(symbol) = file.symbol_by_index(index) else { return "an unknown symbol".into() };
    let section = || file.section_by_index(symbol.section_index()?).ok();
    let name = match symbol.name() {
        Ok("") | Err(_) => section().and_then(|section| section.name().ok()),
        Ok(name) => Some(name),
    };
    name.unwrap_or("an unnamed symbol").into()
}

fn functions(file: &File, layout: &Layout) -> BTreeMap<String, usize> {
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        let (Ok(name), Some(section)) = (symbol.name(), symbol.section_index()) else { continue };
        let Some(placed) = layout.sections.get(&section.0) else { continue };
        if symbol.is_global() && symbol.address() < placed.size_bytes as u64 {
            functions.insert(name.into(), placed.offset + symbol.address() as usize);
        }
    }
    functions
}
