//! `-qmp`, `-monitor`, `-mon`.

use std::rc::Rc;

use lockstep_chardev::options::{describe, parse_short};
use lockstep_qapi::{Dispatcher, opts};
use lockstep_util::{Result, bail, err};

use crate::{
    cmdline::{CommandLine, Occurrence},
    monitor::{attach, readline},
    qmp::Ctx,
    vm::Vm,
};

/// Starts all monitors of the command line.
pub(super) async fn start(vm: &Rc<Vm>, dispatcher: &Rc<Dispatcher<Ctx>>, line: &CommandLine) -> Result<()> {
    let mut compat = 0;
    for o in line.iter() {
        match o.name {
            "qmp" | "qmp-pretty" | "monitor" if o.value != "none" => {
                let label = format!("compat_monitor{compat}");
                compat += 1;
                compat_monitor(vm, dispatcher, o, &label).await?;
            }
            "mon" => mon(vm, dispatcher, o)?,
            _ => {}
        }
    }
    Ok(())
}

/// A monitor with a character device of its own, or on one that exists (`chardev:ID`).
async fn compat_monitor(vm: &Rc<Vm>, dispatcher: &Rc<Dispatcher<Ctx>>, o: &Occurrence, label: &str) -> Result<()> {
    let id = match o.value.strip_prefix("chardev:") {
        Some(id) => id.to_owned(),
        None => {
            let made = match parse_short(label, &o.value).and_then(|opts| describe(&opts)) {
                Ok(described) => vm.add_chardev(described).await,
                Err(e) => Err(e),
            };
            if let Err(e) = made {
                lockstep_util::report::error(o.locate(e));
                bail!("{}: parse error: {}", o.location, o.value);
            }
            label.to_owned()
        }
    };
    if !vm.chardevs.contains(&id) {
        return Err(o.locate(err!("chardev \"{id}\" not found")));
    }
    match o.name {
        "monitor" => readline::start(vm, vm.chardevs.attach(&id).map_err(|e| o.locate(e))?),
        name => {
            attach::start_qmp(vm, dispatcher, vm.chardevs.attach(&id).map_err(|e| o.locate(e))?, name == "qmp-pretty")
        }
    }
    Ok(())
}

fn mon(vm: &Rc<Vm>, dispatcher: &Rc<Dispatcher<Ctx>>, o: &Occurrence) -> Result<()> {
    let options = opts::parse(&o.value, Some("chardev")).map_err(|e| o.locate(e))?;
    for (key, _) in &options.items {
        if !matches!(key.as_str(), "chardev" | "mode" | "pretty") {
            return Err(o.locate(err!("Invalid parameter '{key}'")));
        }
    }
    let mode = options.get("mode").unwrap_or("readline");
    if !matches!(mode, "readline" | "control") {
        return Err(o.locate(err!("Parameter 'mode' does not accept value '{mode}'")));
    }
    let id = options.get("chardev").ok_or_else(|| o.locate(err!("Parameter 'chardev' is missing")))?;
    if !vm.chardevs.contains(id) {
        return Err(o.locate(err!("chardev \"{id}\" not found")));
    }
    let pretty = options.get_bool("pretty").map_err(|e| o.locate(e))?.unwrap_or(false);
    let frontend = || vm.chardevs.attach(id).map_err(|e| o.locate(e));
    match mode {
        "control" => attach::start_qmp(vm, dispatcher, frontend()?, pretty),
        _ => readline::start(vm, frontend()?),
    }
    Ok(())
}
