//! A whole pass of memtest86+.
use crate::Options;
use crate::console::Console;
use std::time::Duration;

const PASS: Duration = Duration::from_secs(1500);

/// Runs a pass over 64 MB.
///
/// # Panics
/// If it finds an error, or does not come to an end.
pub fn pass(options: &Options) {
    let kernel = options.folder.join("memtest86+x64.bin");
    for program in &options.programs {
        let machine = format!("-nodefaults -vga std -display none -m 64 -accel tcg -kernel {}", kernel.display());
        let mut console = Console::start(program, &machine, &["-append", "console=ttyS0,115200"]);
        console.expect("Pass:  1 ", PASS);
        let errors = console.expect("\u{1b}[2;35H", Duration::from_secs(60));
        assert!(errors.trim_start().starts_with("Errors: 0 "), "memtest86+ found errors: {errors}");
        println!(
            "memtest86+ on {program}: a whole pass over 64 MB in {:.0} s, no errors",
            console.elapsed().as_secs_f64()
        );
    }
}
