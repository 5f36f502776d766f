//! A server: where it listens, who looks on, and when the screen is looked at.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lockstep_chardev::address::{Listener, listen};
use lockstep_event::IoThread;
use lockstep_qapi::schema::SocketAddress;
use lockstep_util::{Result, err};
use parking_lot::Mutex;
use socket2::{Domain, SockAddr, SockRef};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, watch};

use crate::handshake::{Access, greet};
use crate::screen::Screen;
use crate::session::{PATIENCE, Session};
use crate::{Event, Input, Machine};

/// A viewer that is not through by then is sent away.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Between two looks at the screen.
const SHORTEST_PAUSE: Duration = Duration::from_millis(30);
/// By this the pause grows while nothing happens.
const PAUSE_STEP: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 16;

/// What happens to the others when a viewer comes that does not share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// They go.
    #[default]
    AllowExclusive,
    /// It goes itself.
    ForceShared,
    /// Nothing.
    Ignore,
}

/// What a server is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub id: String,
    /// The name of what it shows.
    pub title: String,
    /// What happens to others when a viewer does not share.
    pub share: Share,
    /// Viewers need a password, which is set later.
    pub password: bool,
    /// Viewers at a time.
    pub connections: usize,
}

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    Ipv4,
    Ipv6,
    Unix,
}

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address; empty for a Unix socket.
    pub host: String,
    /// Its port, or path.
    pub service: String,
    /// The kind of address.
    pub family: Family,
}

impl Endpoint {
    fn of(address: &SockAddr) -> Self {
        match address.as_socket() {
            Some(inet) => Self {
                host: inet.ip().to_string(),
                service: inet.port().to_string(),
                family: if inet.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
            },
            None => Self {
                host: String::new(),
                service: address.as_pathname().map_or_else(String::new, |path| path.display().to_string()),
                family: Family::Unix,
            },
        }
    }
}

/// A viewer as monitors are told of it.
pub type Client = Endpoint;

/// A connection as monitors are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Our end.
    pub server: Endpoint,
    /// The viewer's.
    pub client: Client,
    /// Whether it needs a password.
    pub password: bool,
}

#[derive(Default)]
struct Password {
    text: Option<String>,
    expires: Option<SystemTime>,
}

/// What both threads know.
struct Shared {
    options: Options,
    servers: Mutex<Vec<Endpoint>>,
    clients: Mutex<Vec<(u64, Client)>>,
    password: Mutex<Password>,
}

impl Shared {
    fn access(&self) -> Access {
        if !self.options.password {
            return Access::Free;
        }
        let password = self.password.lock();
        let valid = password.expires.is_none_or(|end| SystemTime::now() < end);
        Access::Password(password.text.clone().filter(|_| valid))
    }
}

/// A server. It ends when it is dropped.
pub struct Display {
    shared: Arc<Shared>,
    _thread: IoThread,
}

impl Display {
    /// Starts a server that listens at these addresses, or nowhere. All but the first listen at the port that the first one
    /// got, and need not succeed: hosts without IPv6 have no such address.
    ///
    /// # Errors
    /// When it cannot listen, with QEMU's texts.
    pub async fn start(options: Options, addresses: Vec<SocketAddress>, machine: Arc<dyn Machine>) -> Result<Self> {
        let thread = IoThread::spawn("vnc").map_err(|e| err!("Failed to start the VNC server: {e}"))?;
        let shared = Arc::new(Shared {
            options,
            servers: Mutex::default(),
            clients: Mutex::default(),
            password: Mutex::default(),
        });
        let begun = shared.clone();
        let listening = thread.handle().call(move || Server::start(begun, addresses, machine)).await;
        listening.ok_or_else(|| err!("Failed to start the VNC server"))??;
        Ok(Self { shared, _thread: thread })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.shared.options.id
    }

    /// Whether viewers need a password.
    pub fn needs_password(&self) -> bool {
        self.shared.options.password
    }

    /// Where it listens.
    pub fn servers(&self) -> Vec<Endpoint> {
        self.shared.servers.lock().clone()
    }

    /// Who is connected, in the order in which they came.
    pub fn clients(&self) -> Vec<Client> {
        self.shared.clients.lock().iter().map(|(_, client)| client.clone()).collect()
    }

    /// Sets the password; eight bytes of it count. Without one nobody gets in.
    pub fn set_password(&self, text: Option<String>) {
        self.shared.password.lock().text = text;
    }

    /// When the password expires; nothing for never.
    pub fn expire_password(&self, at: Option<SystemTime>) {
        self.shared.password.lock().expires = at;
    }
}

/// The screen and those who look at it.
pub struct Hub {
    pub machine: Arc<dyn Machine>,
    pub screen: RefCell<Screen>,
    /// Somebody waits for something to change.
    pub wanted: Notify,
    generation: watch::Sender<u64>,
    hurry: Notify,
    sessions: RefCell<Vec<Weak<Session>>>,
}

impl Hub {
    pub fn new(machine: Arc<dyn Machine>) -> Rc<Self> {
        Rc::new(Self {
            machine,
            screen: RefCell::default(),
            wanted: Notify::new(),
            generation: watch::Sender::new(0),
            hurry: Notify::new(),
            sessions: RefCell::default(),
        })
    }

    /// Adds a viewer.
    pub fn add(&self, session: &Rc<Session>) {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|s| s.strong_count() > 0);
        sessions.push(Rc::downgrade(session));
    }

    /// Tells of new pictures.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Gives the machine what a user did, whose effect will be looked for soon.
    pub fn input(&self, events: Vec<Input>) {
        if !events.is_empty() {
            self.machine.input(events);
            self.hurry.notify_one();
        }
    }

    /// Looks at the screen. Returns whether it has changed.
    pub fn refresh(&self) -> bool {
        let Some(picture) = self.machine.screen() else { return false };
        let changed = self.screen.borrow_mut().show(picture);
        if changed {
            self.generation.send_replace(self.screen.borrow().generation());
        }
        changed
    }

    fn somebody_waits(&self) -> bool {
        self.sessions.borrow().iter().any(|s| s.upgrade().is_some_and(|s| s.waits()))
    }

    /// Looks at the screen while somebody waits for it to change: often while things happen, else less and less.
    pub async fn watch(&self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            if !self.somebody_waits() {
                self.wanted.notified().await;
                continue;
            }
            pause = if self.refresh() { SHORTEST_PAUSE } else { (pause + PAUSE_STEP).min(LONGEST_PAUSE) };
            tokio::time::sleep(SHORTEST_PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(pause - SHORTEST_PAUSE) => {}
                () = self.hurry.notified() => pause = SHORTEST_PAUSE,
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Serves one viewer over a connection that is there already, until it ends. With a password if there is one.
///
/// # Errors
/// Those of the connection; `InvalidData` where the viewer breaks the protocol, `TimedOut` where it does not go on.
pub async fn serve_one(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    password: Option<String>,
    machine: Arc<dyn Machine>,
) -> io::Result<()> {
    let access = || password.clone().map_or(Access::Free, |p| Access::Password(Some(p)));
    tokio::time::timeout(HANDSHAKE, greet(&mut stream, access)).await??;
    let hub = Hub::new(machine);
    let session = Session::new(hub.clone());
    tokio::select! {
        ended = session.run(stream, "QEMU", std::future::pending()) => ended,
        () = hub.watch() => Ok(()),
    }
}

/// The server on its own thread.
struct Server {
    shared: Arc<Shared>,
    hub: Rc<Hub>,
    /// The viewers that are through, by number.
    viewers: RefCell<Vec<(u64, Rc<Viewer>)>>,
    last: Cell<u64>,
}

/// A viewer that is through.
struct Viewer {
    session: Rc<Session>,
    /// It is sent away.
    leave: Notify,
}

/// A server on the calling context, whose clock a test has.
#[cfg(test)]
pub(crate) async fn serve_here(
    options: Options,
    addresses: Vec<SocketAddress>,
    machine: Arc<dyn Machine>,
) -> Result<()> {
    let shared = Shared { options, servers: Mutex::default(), clients: Mutex::default(), password: Mutex::default() };
    Server::start(Arc::new(shared), addresses, machine).await
}

impl Server {
    async fn start(shared: Arc<Shared>, addresses: Vec<SocketAddress>, machine: Arc<dyn Machine>) -> Result<()> {
        let mut listeners: Vec<Listener> = vec![];
        for mut address in addresses {
            match (&mut address, listeners.first().map(|l| &l.address)) {
                (SocketAddress::Inet(inet), Some(SocketAddress::Inet(first))) => {
                    (inet.port, inet.to) = (first.port.clone(), None);
                    listeners.extend(listen(&address, BACKLOG).await.ok());
                }
                _ => listeners.push(listen(&address, BACKLOG).await?),
            }
        }
        let hub = Hub::new(machine);
        tokio::task::spawn_local({
            let hub = hub.clone();
            async move { hub.watch().await }
        });
        let server = Rc::new(Self { shared, hub, viewers: RefCell::default(), last: Cell::new(0) });
        for listener in listeners {
            let local = SockRef::from(&listener).local_addr()?;
            server.shared.servers.lock().push(Endpoint::of(&local));
            tokio::task::spawn_local(server.clone().accept(listener));
        }
        Ok(())
    }

    async fn accept(self: Rc<Self>, listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(fd) => drop(tokio::task::spawn_local(self.clone().serve(fd))),
                Err(e) => {
                    tracing::warn!("vnc: accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Rc<Self>, fd: OwnedFd) {
        if self.shared.clients.lock().len() >= self.shared.options.connections && !self.make_room() {
            return;
        }
        let ends = |socket: SockRef<'_>| Some((socket.local_addr().ok()?, socket.peer_addr().ok()?));
        let Some((local, peer)) = ends(SockRef::from(&fd)) else { return };
        let Ok(stream) = stream_of(fd) else { return };
        let number = self.last.get() + 1;
        self.last.set(number);
        let (server, client) = (Endpoint::of(&local), Endpoint::of(&peer));
        let connected = Connected { server, client, password: self.shared.options.password };
        self.shared.clients.lock().push((number, connected.client.clone()));
        self.hub.machine.event(Event::Connected(connected.clone()));
        if let Err(e) = self.talk(number, stream, &connected).await {
            tracing::debug!("vnc: {:?}: {e}", connected.client);
        }
        self.viewers.borrow_mut().retain(|(n, _)| *n != number);
        self.shared.clients.lock().retain(|(n, _)| *n != number);
        self.hub.machine.event(Event::Disconnected(connected));
    }

    /// Sends away the viewer that has been silent for longest, if that is long: it may be frozen. A living one whose screen stands
    /// still is silent too, but has to give way only where there is no other place. False: they are all alive.
    fn make_room(&self) -> bool {
        let mut viewers = self.viewers.borrow_mut();
        let silent = viewers.iter().enumerate().max_by_key(|(_, (_, v))| v.session.silence());
        let Some(at) = silent.filter(|(_, (_, v))| v.session.silence() >= PATIENCE).map(|(at, _)| at) else {
            return false;
        };
        let (number, viewer) = viewers.remove(at);
        viewer.leave.notify_one();
        self.shared.clients.lock().retain(|(n, _)| *n != number);
        true
    }

    async fn talk(&self, number: u64, mut stream: Box<dyn Stream>, connected: &Connected) -> io::Result<()> {
        let greeting = greet(&mut stream, || self.shared.access());
        let shares = tokio::time::timeout(HANDSHAKE, greeting).await??;
        match (shares, self.shared.options.share) {
            (false, Share::ForceShared) => return Err(io::ErrorKind::PermissionDenied.into()),
            (false, Share::AllowExclusive) => self.viewers.borrow().iter().for_each(|(_, v)| v.leave.notify_one()),
            _ => {}
        }
        let viewer = Rc::new(Viewer { session: Session::new(self.hub.clone()), leave: Notify::new() });
        self.viewers.borrow_mut().push((number, viewer.clone()));
        self.hub.machine.event(Event::Initialized(connected.clone()));
        viewer.session.run(stream, &self.shared.options.title, viewer.leave.notified()).await
    }
}

fn stream_of(fd: OwnedFd) -> io::Result<Box<dyn Stream>> {
    Ok(match SockRef::from(&fd).domain()? {
        Domain::UNIX => Box::new(UnixStream::from_std(fd.into())?),
        _ => Box::new(TcpStream::from_std(fd.into())?),
    })
}
