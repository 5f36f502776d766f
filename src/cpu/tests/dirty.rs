//! Pages that were written, for whoever carries memory elsewhere while the processor runs.

use super::support::{CODE, DATA, long_mode_with};
use crate::{Cpu, Engine, Exit, state::gpr};
use lockstep_memory::{DirtyClient, PAGE_SIZE, RamBlock, RamList};

const PAGES: u64 = 64;

fn logged(engine: Engine) -> (Box<Cpu>, RamBlock, RamList) {
    let (cpu, ram) = long_mode_with(engine);
    let list = RamList::new();
    cpu.machine.follow_logging(&list);
    list.set_block_logging(&ram, DirtyClient::Migration, true).unwrap();
    (cpu, ram, list)
}

/// Adds up a word of each page of `DATA`, and writes the count of the pass to each page, so many times.
fn load(cpu: &mut Cpu, ram: &RamBlock, passes: u32) {
    // mov ecx, passes; l: mov rbx, DATA; mov edx, PAGES
    // m: add rax, [rbx + PAGES << 12]; mov [rbx + 8], rcx; add rbx, 4096; dec edx; jnz m; dec ecx; jnz l; hlt
    let mut code = vec![0xb9];
    code.extend(passes.to_le_bytes());
    code.extend([0x48, 0xc7, 0xc3]);
    code.extend((DATA as u32).to_le_bytes());
    code.push(0xba);
    code.extend((PAGES as u32).to_le_bytes());
    code.extend([0x48, 0x03, 0x83]);
    code.extend(((PAGES * PAGE_SIZE) as u32).to_le_bytes());
    code.extend([
        0x48, 0x89, 0x4b, 8, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0xff, 0xca, 0x75, 0xea, 0xff, 0xc9, 0x75, 0xda, 0xf4,
    ]);
    ram.write(CODE, &code).unwrap();
    cpu.hot.gpr[gpr::RIP] = CODE;
    cpu.hot.gpr[gpr::RAX] = 0;
    cpu.halted = false;
}

fn dirty(ram: &RamBlock, list: &RamList) -> Vec<u64> {
    list.sync_dirty();
    let bitmap = ram.dirty(DirtyClient::Migration);
    (0..bitmap.pages()).filter(|page| bitmap.take(*page)).collect()
}

#[test]
fn each_page_that_is_written_is_told_once_each_time() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (mut cpu, ram, list) = logged(engine);
        let written: Vec<_> = (DATA / PAGE_SIZE..DATA / PAGE_SIZE + PAGES).collect();
        for _ in 0..3 {
            load(&mut cpu, &ram, 300);
            dirty(&ram, &list);
            assert_eq!(cpu.run(), Exit::Halted);
            let unseen = ram.unseen_writes().count();
            assert!(unseen >= PAGES, "most writes pass unseen: {unseen} pages, {engine:?}");
            // Its translations have accessed and dirty bits, which are in other pages.
            let told: Vec<_> = dirty(&ram, &list).into_iter().filter(|page| *page >= DATA / PAGE_SIZE).collect();
            assert_eq!(told, written);
            assert!(dirty(&ram, &list).is_empty());
        }
    }
}

#[test]
fn a_copy_that_follows_what_is_told_is_the_memory_in_the_end() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (mut cpu, ram, list) = logged(engine);
        let size = ram.size() as usize;
        load(&mut cpu, &ram, 20_000);
        let mut copy = vec![0; size];
        ram.read(0, &mut copy).unwrap();
        let page_of = |page: u64| (page * PAGE_SIZE) as usize..((page + 1) * PAGE_SIZE) as usize;
        let follow = |copy: &mut [u8]| {
            for page in dirty(&ram, &list) {
                ram.read(page * PAGE_SIZE, &mut copy[page_of(page)]).unwrap();
            }
        };
        std::thread::scope(|scope| {
            let running = scope.spawn(|| assert_eq!(cpu.run(), Exit::Halted));
            while !running.is_finished() {
                follow(&mut copy);
            }
        });
        follow(&mut copy);
        let mut memory = vec![0; size];
        ram.read(0, &mut memory).unwrap();
        assert!(copy == memory, "something was written and not told");
    }
}
