//! From the BIOS to `kmain`: boot sector, long mode, native execution under kvm-pvm, interrupt entry points.
//!
//! Until the guest has registered with kvm-pvm its ring 0 is emulated at 1.6 million instructions a second and without SSE,
//! so this part does little and no Rust runs before it is over. Everywhere else the same code takes the ordinary way.
//!
//! Low memory: 0x7c00 boot sector with its header, 0x10000 PML4, 0x11000 page directory pointers, 0x12000 page directory
//! (1 GiB in 2 MiB pages, every level with U=1, as kvm-pvm wants), 0x13000 page shared with the hypervisor (interrupt flag),
//! 0x14000 IDT, 0x15000 page of the hypervisor's clock, 0x20000 kernel.
use core::arch::global_asm;
use core::sync::atomic::{AtomicU8, AtomicU32};

/// Physical address of the interrupt descriptor table (256 gates of 16 bytes).
pub const IDT: u64 = 0x14000;
/// Physical address of the page that KVM keeps its clock in.
pub const KVMCLOCK: u64 = 0x15000;
/// Physical address of the image header in the boot sector.
pub const HEADER: u64 = 0x7c00 + 0x1a0;

unsafe extern "C" {
    /// 1 when ring 0 runs natively under kvm-pvm, written by the entry code.
    pub safe static PVM_NATIVE: AtomicU8;
    /// 1 when KVM keeps its clock for this guest, written by the entry code.
    pub safe static HAS_KVMCLOCK: AtomicU8;
    /// Interrupt requests seen since last taken, bit n = IRQ n.
    pub safe static IRQ_SEEN: AtomicU32;
    /// 64 KiB units of RAM above 16 MiB, as INT 15h E801h told the boot sector.
    pub safe static MEMORY_ABOVE_16M: AtomicU32;
    /// Number of interrupts taken since boot (wraps).
    pub safe static IRQ_COUNT: AtomicU32;
    /// Waits for an interrupt; returns with interrupts off after at most one was taken.
    pub safe fn idle_pvm();
    /// Takes a pending interrupt, if there is one; returns with interrupts off.
    pub safe fn window_pvm();
    /// [`idle_pvm`] for an ordinary CPU.
    pub safe fn idle_plain();
    /// [`window_pvm`] for an ordinary CPU.
    pub safe fn window_plain();
    /// Entry points of exceptions 0 to 31 and interrupts 0x20 to 0x2f.
    pub static VECTORS: [u64; 48];
}

global_asm!(
    r#"
.section .bootsector, "awx", @progbits
.code16
.global boot_sector
boot_sector:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    sti
    cld
    mov [boot_drive], dl
    xor dx, dx
    mov ax, 0xe801
    int 0x15
    mov [MEMORY_ABOVE_16M_low], dx
2:  mov eax, [header_kernel_left]
    test eax, eax
    jz 4f
    cmp eax, 64                         // 32 KiB a call: never crosses a 64 KiB segment
    jbe 3f
    mov eax, 64
3:  mov [packet_count], ax
    push eax
    mov si, offset packet
    mov dl, [boot_drive]
    mov ah, 0x42
    int 0x13
    pop eax
    jc boot_failed
    add [packet_lba], eax
    sub [header_kernel_left], eax
    shl ax, 5
    add [packet_segment], ax
    jmp 2b
boot_failed:
    mov al, 'E'
    mov dx, 0x3f8
    out dx, al
    hlt
    jmp boot_failed

4:  cli
    mov ax, 0x1000                      // page tables, with 16-bit addresses within ES
    mov es, ax
    xor di, di
    xor eax, eax
    mov cx, 0x3000 / 4
    rep stosd
    mov eax, 0x11007
    mov es:[0], eax
    mov es:[0xff8], eax                 // the same GiB once more at the top: stacks of a TSS would have to lie there
    mov eax, 0x12007
    mov es:[0x1000], eax
    mov di, 0x2000
    mov eax, 0x87
    mov cx, 512
5:  mov es:[di], eax
    add eax, 0x200000
    add di, 8
    loop 5b
    mov eax, 0x10000
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620                       // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    lgdt [gdt_pointer]
    mov eax, cr0
    and eax, 0x9ffffff3                 // clear CD, NW, EM, TS
    or eax, 0x80000023                  // PG, NE, MP, PE
    mov cr0, eax
    .byte 0x66, 0xea                    // jmp far 8:start64
    .long start64
    .word 8

.balign 8
gdt:
    .quad 0, 0x00209b0000000000, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt
boot_drive:
    .byte 0
MEMORY_ABOVE_16M:
MEMORY_ABOVE_16M_low:
    .long 0
.global MEMORY_ABOVE_16M
packet:
    .byte 16, 0
packet_count:
    .word 0
    .word 0
packet_segment:
    .word 0x2000
packet_lba:
    .quad 1
    .org 0x1a0                          // the image builder fills in what follows; see header.rs
    .ascii "LSGUEST1"
header_kernel_left:
    .long 0
    .skip 48
    .org 510
    .word 0xaa55

.section .text.start, "ax", @progbits
.code64
start64:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, offset boot_stack_top
    xor ebp, ebp
    mov edi, 0x14000 + 13 * 16          // only #GP has a gate yet
    lea rax, [rip + probe_failed]
    mov [rdi], ax
    mov dword ptr [rdi + 2], 0x8e000000 | 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    lidt [rip + idt_pointer]
    mov eax, 0x40000000                 // KVM's leaves: asked here, where CPUID is surely the hypervisor's
    cpuid
    cmp ebx, 0x4b4d564b
    jne 1f
    mov eax, 0x40000001
    cpuid
    test eax, 8                         // KVM_FEATURE_CLOCKSOURCE2
    jz 1f
    mov ecx, 0x4b564d01
    mov eax, 0x15001
    xor edx, edx
    wrmsr
    mov byte ptr [rip + HAS_KVMCLOCK], 1
1:  mov ecx, 0x4b564d11                 // signature of kvm-pvm; #GP on other hypervisors and on hardware
    xor eax, eax
    rdmsr
    cmp eax, 0x4d5650
    jne 2f
    mov dword ptr [0x13000], 0
    mov dword ptr [0x13004], 0
    mov ecx, 0x4b564d10
    mov eax, 0x13001
    xor edx, edx
    wrmsr                               // from here on native
    mov byte ptr [rip + PVM_NATIVE], 1
2:  mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    shr ecx, 3
    xor eax, eax
    rep stosq
    call kmain
3:  hlt
    jmp 3b
probe_failed:
    add rsp, 8
    add qword ptr [rsp], 2              // over rdmsr
    xor eax, eax
    iretq

.data
.balign 8
idt_pointer:
    .word 0xfff
    .quad 0x14000
.global PVM_NATIVE, HAS_KVMCLOCK, IRQ_SEEN, IRQ_COUNT
IRQ_SEEN: .long 0
IRQ_COUNT: .long 0
PVM_NATIVE: .byte 0
HAS_KVMCLOCK: .byte 0

.bss
.balign 4096
boot_stack: .skip 524288
boot_stack_top:

.text
// Interrupts are on only inside these four, so a handler meets no red zone and no SSE state, and takes at most one interrupt: it
// clears IF in the frame it returns to. Under kvm-pvm the interrupt flag is a byte in memory and `hlt` does not turn it on by
// itself: an interrupt between turning it on and `hlt` would be slept over, so the handler moves a RIP in that range to its end.
.global idle_pvm, window_pvm, idle_plain, window_plain
idle_pvm:
    mov byte ptr [0x13000], 1
idle_begin:
    cmp byte ptr [0x13001], 0
    jne 2f
    hlt
    jmp idle_end
2:  mov byte ptr [0x13001], 0
    sti                                 // traps, and delivers at once
idle_end:
    mov byte ptr [0x13000], 0
    ret
window_pvm:
    cmp byte ptr [0x13001], 0
    je 3f
    mov byte ptr [0x13000], 1
    mov byte ptr [0x13001], 0
    sti
    mov byte ptr [0x13000], 0
3:  ret
idle_plain:
    sti
    hlt
    cli
    ret
window_plain:
    sti
    nop
    cli
    ret

irq_common:                             // [rsp] rax, IRQ number, rip, cs, rflags
    push rcx
    mov ecx, [rsp + 16]
    mov eax, 1
    shl eax, cl
    or [rip + IRQ_SEEN], eax
    inc dword ptr [rip + IRQ_COUNT]
    cmp ecx, 8
    mov al, 0x20
    jb 2f
    out 0xa0, al
2:  out 0x20, al
    mov rax, [rsp + 24]
    cmp rax, offset idle_begin
    jb 3f
    cmp rax, offset idle_end
    jae 3f
    mov qword ptr [rsp + 24], offset idle_end
3:  and dword ptr [rsp + 40], 0xfffffdff
    pop rcx
    pop rax
    add rsp, 8
    iretq

.macro exception number has_code
exception_\number:
    .if \has_code == 0
    push 0
    .endif
    push \number
    jmp exception_common
.endm
.macro irq number
irq_\number:
    push \number
    push rax
    jmp irq_common
.endm
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 31
exception \n 0
.endr
.irp n, 8, 10, 11, 12, 13, 14, 17, 21, 29, 30
exception \n 1
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
irq \n
.endr
exception_common:                       // [rsp] vector, error code, rip: never returns
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, cr2
    and rsp, -16
    call exception_entry

.section .rodata
.balign 8
.global VECTORS
VECTORS:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    .quad exception_\n
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .quad irq_\n
.endr

.text
// What core and alloc call: a hosted target's compiler_builtins leaves them to libc.
.global memcpy, memmove, memset, memcmp, bcmp, strlen
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    jae memcpy
    mov rax, rdi                        // the destination starts inside the source: from the end
    std
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    mov rcx, rdx
    rep movsb
    cld
    ret
memcpy:
    mov rax, rdi
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    mov ecx, edx
    and ecx, 7
    rep movsb
    ret
memset:
    mov r8, rdi
    movzx eax, sil
    mov rcx, 0x0101010101010101
    imul rax, rcx
    mov rcx, rdx
    shr rcx, 3
    rep stosq
    mov ecx, edx
    and ecx, 7
    rep stosb
    mov rax, r8
    ret
bcmp:
memcmp:
    xor eax, eax
    mov rcx, rdx
    cmp rcx, rcx
    repe cmpsb
    je 2f
    movzx eax, byte ptr [rdi - 1]
    movzx ecx, byte ptr [rsi - 1]
    sub eax, ecx
2:  ret
// Landing pads of the precompiled alloc crate name it; nothing unwinds here.
.global _Unwind_Resume
_Unwind_Resume:
    ud2
strlen:
    xor eax, eax
2:  cmp byte ptr [rdi + rax], 0
    je 3f
    inc rax
    jmp 2b
3:  ret
"#
);
