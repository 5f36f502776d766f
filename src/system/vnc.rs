//! `-vnc`: displays for VNC viewers.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};

use lockstep_event::{ContextHandle, Local};
use lockstep_hw::core::{Axis, Category, Device, InputEvent, InputHub, Key, MouseButton};
use lockstep_qapi::{
    event,
    opts::{self, Opts},
    schema::{InetSocketAddress, SocketAddress, UnixSocketAddress, VncBasicInfo, VncClientInfo, VncServerInfo},
};
use lockstep_util::{Result, bail, err};
use lockstep_vnc::{Connected, Display, Endpoint, Event, Family, Input, Machine, Options, Picture, Share};

use crate::{
    cmdline::parameters,
    qmp::{input, keys},
    vm::Vm,
};

/// The port of display 0.
const FIRST_PORT: u64 = 5900;
/// Viewers at a time unless a user says.
const CONNECTIONS: u64 = 32;

/// The displays of a machine, in the order in which they were made.
#[derive(Default)]
pub struct Displays {
    list: RefCell<Vec<Rc<Display>>>,
}

impl Displays {
    /// All of them.
    pub fn list(&self) -> Vec<Rc<Display>> {
        self.list.borrow().clone()
    }

    /// One by its name; the first without.
    pub fn find(&self, id: Option<&str>) -> Option<Rc<Display>> {
        let list = self.list.borrow();
        list.iter().find(|d| id.is_none_or(|id| d.id() == id)).cloned()
    }

    /// Sets a password, or when it expires.
    ///
    /// # Errors
    /// When there is no such display, or it has no passwords.
    pub fn set_password(&self, id: Option<&str>, password: String) -> Result<()> {
        match self.find(id) {
            Some(display) if display.needs_password() => display.set_password(Some(password)),
            Some(_) => {
                return Err(err!("Could not set password")
                    .hint("If you want use passwords please enable password auth using '-vnc ${dpy},password'.\n"));
            }
            None => bail!("Could not set password"),
        }
        Ok(())
    }

    /// Has a display's password expire: `now`, `never`, `+SECONDS` from now, or at a Unix time.
    ///
    /// # Errors
    /// When there is no such display, or the time is none of these.
    pub fn expire_password(&self, id: Option<&str>, time: &str) -> Result<()> {
        let number = |text: &str| text.parse().map(Duration::from_secs).ok();
        let at = match (time, time.strip_prefix('+')) {
            ("now", _) => Some(SystemTime::UNIX_EPOCH),
            ("never", _) => None,
            (_, Some(seconds)) => number(seconds).and_then(|d| SystemTime::now().checked_add(d)),
            (_, None) => number(time).and_then(|d| SystemTime::UNIX_EPOCH.checked_add(d)),
        };
        if at.is_none() && time != "never" {
            bail!("Parameter 'time' doesn't take value '{time}'");
        }
        let display = self.find(id).ok_or_else(|| err!("Could not set password expire time"))?;
        display.expire_password(at);
        Ok(())
    }

    /// Makes a display by the words of `-vnc`.
    ///
    /// # Errors
    /// With QEMU's texts.
    pub async fn add(&self, vm: &Rc<Vm>, text: &str) -> Result<()> {
        let mut given = opts::parse(text, Some("vnc"))?;
        given.check(&parameters::descriptions("vnc"))?;
        let id = given.id.clone().unwrap_or_else(|| self.free_name());
        if self.find(Some(&id)).is_some() {
            bail!("Duplicate ID '{id}' for vnc");
        }
        let share = match given.take("share").as_deref() {
            None | Some("allow-exclusive") => Share::AllowExclusive,
            Some("force-shared") => Share::ForceShared,
            Some("ignore") => Share::Ignore,
            Some(_) => bail!("unknown vnc share= option"),
        };
        let options = Options {
            id,
            title: vm.options.name.as_ref().map_or_else(|| "QEMU".to_owned(), |name| format!("QEMU ({name})")),
            share,
            password: given.get_bool("password")?.unwrap_or(false),
            connections: usize::try_from(given.get_number("connections")?.unwrap_or(CONNECTIONS)).unwrap_or(usize::MAX),
        };
        let searches = given.get_number("to")?.is_some();
        let display = Display::start(options, addresses(&mut given)?, Arc::new(Guest::of(vm))).await?;
        // The line that tells which port it has become.
        if let (true, Some(Endpoint { host, service, .. })) = (searches, display.servers().first()) {
            println!("VNC server running on {host}:{service}");
        }
        self.list.borrow_mut().push(Rc::new(display));
        Ok(())
    }

    fn free_name(&self) -> String {
        let free = |name: &String| self.find(Some(name)).is_none();
        let numbered = (2..).map(|n| format!("vnc{n}"));
        std::iter::once("default".to_owned()).chain(numbered).find(free).unwrap_or_default()
    }
}

/// Where a display listens: `HOST:NUMBER`, `unix:PATH`, or nowhere (`none`).
fn addresses(given: &mut Opts) -> Result<Vec<SocketAddress>> {
    let text = given.take("vnc").unwrap_or_default();
    if matches!(text.as_str(), "" | "none") {
        return Ok(vec![]);
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(vec![SocketAddress::Unix(UnixSocketAddress { path: path.into(), ..UnixSocketAddress::default() })]);
    }
    let Some((host, number)) = text.rsplit_once(':') else { bail!("no vnc port specified") };
    let number: u64 = number.parse().map_err(|_| err!("can't convert to a number: {number}"))?;
    let port = |number: u64| {
        let port = number.checked_add(FIRST_PORT).and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| err!("port {number} out of range"))
    };
    let to = given.get_number("to")?.map(port).transpose()?;
    let (ipv4, ipv6) = (given.get_bool("ipv4")?, given.get_bool("ipv6")?);
    let address = |host: &str| {
        let (host, port) = (host.to_owned(), port(number)?.to_string());
        Ok(SocketAddress::Inet(InetSocketAddress { host, port, to, ipv4, ipv6, ..InetSocketAddress::default() }))
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if !host.is_empty() {
        return Ok(vec![address(host)?]);
    }
    let wanted = [("0.0.0.0", ipv4, ipv6), ("::", ipv6, ipv4)];
    let families = wanted.into_iter().filter(|(_, this, other)| this.unwrap_or(*other != Some(true)));
    families.map(|(host, ..)| address(host)).collect()
}

/// What viewers reach of the machine, from the displays' threads.
struct Guest {
    main: ContextHandle,
    vm: Arc<Local<Weak<Vm>>>,
    screen: Option<Arc<dyn Device>>,
    input: InputHub,
}

impl Guest {
    fn of(vm: &Rc<Vm>) -> Self {
        let display = vm.board.tree.devices().into_iter().find(|n| n.kind.category == Category::Display);
        Self {
            main: vm.main.clone(),
            vm: Arc::new(Local::new(Rc::downgrade(vm))),
            screen: display.map(|n| n.device.clone()),
            input: vm.board.input.clone(),
        }
    }

    fn on_main(&self, act: impl FnOnce(&Vm) + Send + 'static) {
        let vm = self.vm.clone();
        self.main.post(move || {
            if let Some(vm) = vm.get().upgrade() {
                act(&vm);
            }
        });
    }
}

impl Machine for Guest {
    fn screen(&self) -> Option<Picture> {
        let image = self.screen.as_ref()?.screen()?;
        Some(Picture { width: image.width, height: image.height, rgb: image.rgb })
    }

    fn input(&self, events: Vec<Input>) {
        let events: Vec<_> = events.into_iter().flat_map(translate).collect();
        self.on_main(move |vm| input::send(vm, &events));
    }

    fn pointer_is_absolute(&self) -> bool {
        self.input.pointer_is_absolute()
    }

    fn event(&self, event: Event) {
        self.on_main(move |vm| match event {
            Event::Connected(c) => {
                vm.emit::<event::VncConnected>(&event::VncConnected { server: server(&c), client: basic(&c.client) });
            }
            Event::Initialized(c) => {
                vm.emit::<event::VncInitialized>(&event::VncInitialized {
                    server: server(&c),
                    client: client(&c.client),
                });
            }
            Event::Disconnected(c) => {
                vm.emit::<event::VncDisconnected>(&event::VncDisconnected {
                    server: server(&c),
                    client: client(&c.client),
                });
            }
        });
    }
}

fn translate(event: Input) -> Vec<InputEvent> {
    /// By the bits of RFB's mask.
    const BUTTONS: [MouseButton; 8] = [
        MouseButton::Left,
        MouseButton::Middle,
        MouseButton::Right,
        MouseButton::WheelUp,
        MouseButton::WheelDown,
        MouseButton::WheelLeft,
        MouseButton::WheelRight,
        MouseButton::Side,
    ];
    match event {
        Input::Key(lockstep_vnc::Key::Code(code), down) => vec![InputEvent::Key(Key(code), down)],
        Input::Key(lockstep_vnc::Key::Scancode(code), down) => {
            keys::of_number(code.into()).map(|key| InputEvent::Key(key, down)).into_iter().collect()
        }
        Input::Button(bit, down) => {
            BUTTONS.get(usize::from(bit)).map(|b| InputEvent::Button(*b, down)).into_iter().collect()
        }
        Input::Moved([x, y]) => vec![InputEvent::Relative(Axis::X, x), InputEvent::Relative(Axis::Y, y)],
        Input::At([x, y]) => vec![InputEvent::Absolute(Axis::X, x), InputEvent::Absolute(Axis::Y, y)],
    }
}

/// `none` or `vnc`.
pub fn authentication(password: bool) -> &'static str {
    if password { "vnc" } else { "none" }
}

/// An end of a connection, for monitors.
pub fn basic(end: &Endpoint) -> VncBasicInfo {
    use lockstep_qapi::schema::NetworkAddressFamily as Schema;
    let family = match end.family {
        Family::Ipv4 => Schema::Ipv4,
        Family::Ipv6 => Schema::Ipv6,
        Family::Unix => Schema::Unix,
    };
    VncBasicInfo { host: end.host.clone(), service: end.service.clone(), family, websocket: false }
}

/// A viewer, for monitors.
pub fn client(end: &Endpoint) -> VncClientInfo {
    let VncBasicInfo { host, service, family, websocket } = basic(end);
    VncClientInfo { host, service, family, websocket, x509_dname: None, sasl_username: None }
}

fn server(connected: &Connected) -> VncServerInfo {
    let VncBasicInfo { host, service, family, websocket } = basic(&connected.server);
    VncServerInfo { host, service, family, websocket, auth: Some(authentication(connected.password).into()) }
}
