//! The undefined symbols of a 64-bit little-endian ELF object that LLVM has just written.

/// Names of the symbols an object refers to and does not define, in the table's order.
pub fn undefined_symbols(object: &[u8]) -> Vec<String> {
    let sections = sections(object);
    let Some(table) = sections.iter().find(|s| s.kind == SHT_SYMTAB) else {
        return vec![];
    };
    let strings = &sections[table.link];
    let names = &object[strings.offset..strings.offset + strings.size];
    let symbols = object[table.offset..table.offset + table.size].chunks_exact(SYMBOL_BYTES);
    let undefined = symbols.filter(|s| {
        let section = u16::from_le_bytes([s[6], s[7]]);
        let has_name = u32_at(s, 0) != 0;
        section == SHN_UNDEF && has_name
    });
    undefined.map(|s| text(&names[u32_at(s, 0) as usize..])).collect()
}

const SHT_SYMTAB: u32 = 2;
const SHN_UNDEF: u16 = 0;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

struct Section {
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
}

fn sections(object: &[u8]) -> Vec<Section> {
    let first = u64_at(object, 0x28) as usize;
    let n_sections = u16::from_le_bytes([object[0x3c], object[0x3d]]) as usize;
    let headers = object[first..].chunks_exact(SECTION_BYTES).take(n_sections);
    let section = |h: &[u8]| Section {
        kind: u32_at(h, 4),
        offset: u64_at(h, 0x18) as usize,
        size: u64_at(h, 0x20) as usize,
        link: u32_at(h, 0x28) as usize,
    };
    headers.map(section).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
