//! The options that work. What is not here is an invalid option.

/// An option.
pub struct OptionDef {
    /// Its name, without dash.
    pub name: &'static str,
    /// Another name.
    pub alias: Option<&'static str>,
    /// Whether a word follows.
    pub argument: bool,
    /// What `-help` shows: a heading, an empty string for hidden ones.
    pub usage: &'static str,
    /// What `-help` says about it.
    pub help: &'static str,
}

const fn flag(name: &'static str, help: &'static str) -> OptionDef {
    OptionDef { name, alias: None, argument: false, usage: name, help }
}

const fn takes(name: &'static str, usage: &'static str, help: &'static str) -> OptionDef {
    OptionDef { name, alias: None, argument: true, usage, help }
}

const fn aliased(option: OptionDef, alias: &'static str) -> OptionDef {
    OptionDef { alias: Some(alias), ..option }
}

/// All options, in the order of `-help`.
pub static OPTIONS: &[OptionDef] = &[
    aliased(flag("help", "display this help and exit"), "h"),
    flag("version", "display version information and exit"),
    aliased(
        takes("machine", "machine [type=]name[,prop[=value][,...]]", "select the machine ('-machine help' lists them)"),
        "M",
    ),
    takes("cpu", "cpu cpu", "select the CPU ('-cpu help' lists them)"),
    takes(
        "accel",
        "accel [accel=]accelerator[,prop[=value][,...]]",
        "select what runs the guest; may be given again as a fallback",
    ),
    flag("enable-kvm", "run the guest by KVM, fail if that is not possible"),
    takes("smp", "smp [[cpus=]n][,sockets=n][,cores=n][,threads=n][,maxcpus=n]", "number of vCPUs and their topology"),
    takes("m", "m [size=]megs", "size of the guest's memory (M by default)"),
    takes("global", "global driver.property=value", "change a device property's default"),
    takes(
        "boot",
        "boot [order=drives][,once=drives][,menu=on|off][,strict=on|off]",
        "what to boot from: a floppy, c disk, d CD-ROM, n network",
    ),
    takes("device", "device driver[,prop[=value][,...]]", "add a device ('-device help', '-device driver,help')"),
    takes("name", "name string1[,process=string2][,debug-threads=on|off]", "name of the guest"),
    takes("uuid", "uuid uuid", "the machine's UUID"),
    takes("hda", "hda file", "image of disk 0"),
    takes("hdb", "hdb file", "image of disk 1"),
    takes("hdc", "hdc file", "image of disk 2"),
    takes("hdd", "hdd file", "image of disk 3"),
    takes("cdrom", "cdrom file", "image of the CD-ROM (disk 2)"),
    takes("blockdev", "blockdev [driver=]driver[,node-name=N][,...]", "add a block node"),
    takes("drive", "drive [file=file][,if=type][,id=name][,...]", "add a disk with its block nodes"),
    takes("display", "display none|vnc=<display>[,<optargs>]", "how to show the guest's screen"),
    takes(
        "vnc",
        "vnc host:d|unix:path|none[,to=n][,share=policy][,password=on|off][,connections=n]",
        "show it to VNC viewers, at port 5900 + d",
    ),
    flag("nographic", "no screen; serial port and monitor on the terminal"),
    takes("vga", "vga std|none", "video card"),
    flag("usb", "USB controller on the board"),
    takes("netdev", "netdev tap|bridge|socket|stream|dgram,id=str[,...]", "add a network backend"),
    takes("net", "net none", "no default network card"),
    takes("nic", "nic none", "no default network card"),
    takes("chardev", "chardev backend,id=str[,...]", "add a character device ('-chardev help')"),
    takes("bios", "bios file", "firmware image"),
    takes("kernel", "kernel bzImage", "Linux kernel to boot"),
    takes("append", "append cmdline", "command line of that kernel"),
    takes("initrd", "initrd file", "initial RAM disk of that kernel"),
    takes("fw_cfg", "fw_cfg [name=]<name>,file=<file>|string=<str>", "add an entry to fw_cfg"),
    takes("serial", "serial dev", "connect the serial port to a character device"),
    takes("parallel", "parallel dev", "connect the parallel port to a character device"),
    takes("monitor", "monitor dev", "human monitor on a character device"),
    takes("qmp", "qmp dev", "QMP monitor on a character device"),
    takes("qmp-pretty", "qmp-pretty dev", "like -qmp, one member a line"),
    takes("mon", "mon [chardev=]name[,mode=readline|control][,pretty[=on|off]]", "monitor on a -chardev"),
    takes("debugcon", "debugcon dev", "debug port 0xe9 on a character device"),
    takes("pidfile", "pidfile file", "write the process id to a file"),
    flag("S", "do not start the guest at once ('cont' starts it)"),
    takes("d", "d item1[,...]", "log what the guest does ('-d help' lists the items)"),
    takes("D", "D logfile", "write that log to a file ('%d' is the process id) in place of standard error"),
    takes(
        "dfilter",
        "dfilter range[,...]",
        "log code of these addresses only (first+length, last-length, first..last)",
    ),
    takes("gdb", "gdb dev", "wait for gdb on a character device"),
    flag("s", "shorthand for -gdb tcp::1234"),
    takes("L", "L path", "folder of firmware images, searched first"),
    flag("no-reboot", "exit instead of rebooting"),
    flag("no-shutdown", "stop instead of exiting when the guest powers off"),
    takes(
        "action",
        "action reboot=reset|shutdown, shutdown=poweroff|pause, panic=pause|shutdown|exit-failure|none",
        "what an event leads to",
    ),
    flag("daemonize", "go to the background once everything is set up"),
    takes(
        "icount",
        "icount [shift=N|auto][,align=on|off][,sleep=on|off]",
        "the virtual clock counts instructions, of 2^N nanoseconds each",
    ),
    takes("rtc", "rtc [base=utc|localtime|<datetime>][,clock=host|vm]", "the real-time clock"),
    takes(
        "incoming",
        "incoming tcp:[host]:port|unix:path|fd:n|exec:command|file:name[,offset=n]|defer",
        "wait for a migration",
    ),
    flag("only-migratable", "refuse devices that cannot migrate"),
    flag("nodefaults", "no default devices"),
    flag("no-user-config", "read no configuration files of the user"),
    takes("object", "object TYPENAME[,PROP1=VALUE1,...]", "add an object ('-object help')"),
    takes("add-fd", "add-fd fd=fd,set=set[,opaque=opaque]", "add an open descriptor to a set (/dev/fdset/SET)"),
    takes("msg", "msg [timestamp[=on|off]][,guest-name[=on|off]]", "what goes before messages"),
    takes("qtest", "qtest dev", "qtest protocol on a character device"),
    takes("qtest-log", "qtest-log file", "log of the qtest protocol"),
];

/// The text of `-help`.
pub fn help_text() -> String {
    let mut text = format!(
        "{}\nusage: qemu-system-x86_64 [options] [disk_image]\n\n'disk_image' is a raw hard disk image for IDE hard disk 0\n\nOptions:\n",
        crate::version_text()
    );
    for option in OPTIONS.iter().filter(|o| !o.usage.is_empty()) {
        let usage = match option.alias {
            Some(alias) if alias.len() == 1 => format!("-{} or -{}", option.usage, alias),
            _ => format!("-{}", option.usage),
        };
        if usage.len() < 15 {
            text.push_str(&format!("{usage:<15} {}\n", option.help));
        } else {
            text.push_str(&format!("{usage}\n                {}\n", option.help));
        }
    }
    text
}
