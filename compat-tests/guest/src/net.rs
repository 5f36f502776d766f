//! The network: one interface, a pool of sockets that grows with its use, echo and HTTP on them.
use crate::cpu::{self, now_us};
use crate::header::Header;
use crate::heap;
use crate::http::{Http, World};
use crate::rtl8139::Rtl8139;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Address};

const ECHO_PORT: u16 = 7;
const HTTP_PORT: u16 = 80;
/// Sockets of a port that wait for connections, so that many can open at once.
const LISTENING: usize = 16;
/// Most sockets of a port. A connection that this end closed first keeps its socket for another 10 s.
const MAX_SOCKETS: usize = 128;
/// Bytes of each direction's buffer: with the window scale that follows from it, enough for a long fat pipe.
const BUFFER: usize = 256 << 10;
/// The same for what comes to the echo service: as much as a window without a scale can tell. A scaled window is rounded down, so that a peer may
/// have sent a few bytes more than it is offered in the end. smoltcp 0.14 does not look at the acknowledgements of such a segment (RFC 9293,
/// 3.10.7.4, asks for that), and this service reads on only when what it has sent is acknowledged: both would wait for ever.
const UNSCALED: usize = u16::MAX as usize;
/// Frames handled before answers to them are sent.
const INGRESS_BATCH: usize = 64;

struct Connection {
    socket: SocketHandle,
    port: u16,
    /// The protocol's state; `None` while listening.
    state: Option<State>,
}

enum State {
    Echo,
    Http(Http),
}

/// Interface, sockets and connections.
pub struct Net {
    /// The card.
    pub nic: Rtl8139,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    udp_echo: SocketHandle,
    /// Never sends anything: opening it draws a random number from the interface.
    perturber: tcp::Socket<'static>,
    scratch: Vec<u8>,
    next_ticket: u64,
}

fn now() -> Instant {
    Instant::from_micros(now_us() as i64)
}

impl Net {
    /// Brings the interface up.
    pub fn start(mut nic: Rtl8139, header: &Header, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut nic, now());
        let [a, b, c, d] = header.address;
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::v4(a, b, c, d), header.prefix));
        });
        let [a, b, c, d] = header.gateway;
        let _ = interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(a, b, c, d));
        let mut sockets = SocketSet::new(vec![]);
        let packets = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], heap::buffer(128 << 10));
        let mut echo = udp::Socket::new(packets(), packets());
        echo.bind(ECHO_PORT).expect("the port is free");
        let udp_echo = sockets.add(echo);
        let perturber = tcp::Socket::new(tcp::SocketBuffer::new(vec![]), tcp::SocketBuffer::new(vec![]));
        let scratch = heap::buffer(64 << 10);
        let connections = Vec::new();
        let mut net = Self { nic, interface, sockets, connections, udp_echo, perturber, scratch, next_ticket: 1 };
        net.keep_listening();
        net
    }

    /// One round: frames in, services, frames out. True if there was anything to do.
    pub fn round(&mut self, world: &mut World) -> bool {
        let mut worked = self.ingress(&mut world.entropy);
        worked |= self.serve(world);
        while let PollResult::SocketStateChanged = self.interface.poll_egress(now(), &mut self.nic, &mut self.sockets) {
            worked = true;
        }
        self.nic.kick();
        if worked {
            self.keep_listening();
        }
        world.net = [self.nic.received, self.nic.sent, self.nic.interrupts];
        worked
    }

    /// Connections that are open.
    pub fn stored(&mut self, finished: &[(u64, bool)]) {
        for connection in &mut self.connections {
            if let Some(State::Http(http)) = &mut connection.state {
                finished.iter().for_each(|&(ticket, done)| http.stored(ticket, done));
            }
        }
    }

    fn ingress(&mut self, entropy: &mut cpu::Entropy) -> bool {
        let time = now();
        for _ in 0..INGRESS_BATCH {
            let Some(frame) = self.nic.peek() else { return false };
            let opening = opening_segment(frame);
            let repeated = opening.is_some_and(|(from, port)| self.is_connected(from, port));
            if repeated {
                self.set_listening(false);
            } else if opening.is_some() {
                self.perturb(entropy);
            }
            let result = self.interface.poll_ingress_single(time, &mut self.nic, &mut self.sockets);
            if repeated {
                self.set_listening(true);
            }
            match result {
                PollIngressSingleResult::None => break,
                _ => self.nic.release(),
            }
        }
        true
    }

    /// Is there a connection between this peer and this port of ours?
    fn is_connected(&self, from: IpEndpoint, port: u16) -> bool {
        let connections = self.connections.iter().filter(|connection| connection.port == port);
        connections.map(|connection| self.sockets.get::<tcp::Socket>(connection.socket)).any(|socket| {
            socket.remote_endpoint() == Some(from)
                && !matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
        })
    }

    /// Stops or starts listening on all ports. The first socket that accepts a segment gets it, and to a listening one a repeated SYN
    /// looks like a new connection: while a SYN for an existing connection is handled, nobody may listen.
    fn set_listening(&mut self, on: bool) {
        for connection in &self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket>(connection.socket);
            match socket.state() {
                tcp::State::Listen if !on => socket.abort(),
                tcp::State::Closed if on && socket.remote_endpoint().is_none() => listen(socket, connection.port),
                _ => {}
            }
        }
    }

    /// Makes initial sequence numbers differ between VMs that were loaded from one checkpoint: the interface's generator has the same
    /// state in both, so before each SYN a number of draws that depends on this moment is thrown away. Equal numbers once in 256
    /// connections are as correct as different ones.
    fn perturb(&mut self, entropy: &mut cpu::Entropy) {
        for _ in 0..=entropy.next() % 256 {
            let _ = self.perturber.connect(
                self.interface.context(),
                (IpAddress::v4(127, 0, 0, 1), 9),
                (IpAddress::v4(127, 0, 0, 1), 9),
            );
            self.perturber.abort();
        }
    }

    fn serve(&mut self, world: &mut World) -> bool {
        let mut worked = false;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket>(connection.socket);
            let state = match socket.state() {
                tcp::State::Closed | tcp::State::Listen | tcp::State::SynReceived => {
                    connection.state = None;
                    continue;
                }
                _ => connection.state.get_or_insert_with(|| {
                    self.next_ticket += 1;
                    if connection.port == ECHO_PORT { State::Echo } else { State::Http(Http::new(self.next_ticket)) }
                }),
            };
            worked |= match state {
                State::Echo => echo(socket, &mut self.scratch),
                State::Http(http) => http.step(socket, world),
            };
        }
        worked | self.serve_udp()
    }

    fn serve_udp(&mut self) -> bool {
        let socket = self.sockets.get_mut::<udp::Socket>(self.udp_echo);
        let mut worked = false;
        while socket.can_send()
            && let Ok((size, from)) = socket.recv_slice(&mut self.scratch)
        {
            let _ = socket.send_slice(&self.scratch[..size], from);
            worked = true;
        }
        worked
    }

    /// Reopens closed sockets for the next connection and adds new ones while few are left.
    fn keep_listening(&mut self) {
        for port in [ECHO_PORT, HTTP_PORT] {
            let mut waiting = 0;
            let mut total = 0;
            for connection in self.connections.iter().filter(|connection| connection.port == port) {
                total += 1;
                let socket = self.sockets.get_mut::<tcp::Socket>(connection.socket);
                if socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none() {
                    listen(socket, port);
                }
                waiting += usize::from(socket.state() == tcp::State::Listen);
            }
            while waiting < LISTENING && total < MAX_SOCKETS {
                let window = if port == ECHO_PORT { UNSCALED } else { BUFFER };
                let (Some(receive), Some(send)) = (heap::try_buffer(window), heap::try_buffer(BUFFER)) else { break };
                let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
                socket.set_nagle_enabled(false);
                socket.set_keep_alive(Some(Duration::from_secs(60)));
                socket.set_timeout(Some(Duration::from_secs(600)));
                listen(&mut socket, port);
                self.connections.push(Connection { socket: self.sockets.add(socket), port, state: None });
                waiting += 1;
                total += 1;
            }
        }
    }
}

fn listen(socket: &mut tcp::Socket, port: u16) {
    // Once a peer without timestamps (RFC 7323) has used the socket, its generator is gone.
    socket.set_tsval_generator(Some(cpu::timestamp));
    socket.listen(port).expect("the socket is closed");
}

/// Sends back what has come. True if something had.
fn echo(socket: &mut tcp::Socket, scratch: &mut [u8]) -> bool {
    let room = socket.send_capacity() - socket.send_queue();
    let count = room.min(socket.recv_queue()).min(scratch.len());
    if count != 0
        && let Ok(count) = socket.recv_slice(&mut scratch[..count])
    {
        let _ = socket.send_slice(&scratch[..count]);
        return true;
    }
    if !socket.may_recv() && socket.recv_queue() == 0 {
        socket.close();
    }
    false
}

/// Sender and destination port of an Ethernet frame that holds an IPv4 TCP segment with SYN and without ACK.
fn opening_segment(frame: &[u8]) -> Option<(IpEndpoint, u16)> {
    if frame.len() < 34 || frame[12..14] != [8, 0] || frame[23] != 6 {
        return None;
    }
    let segment = frame.get(14 + usize::from(frame[14] & 15) * 4..)?;
    if segment.get(13)? & 0x12 != 2 {
        return None;
    }
    let address = IpAddress::v4(frame[26], frame[27], frame[28], frame[29]);
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    Some((IpEndpoint::new(address, port(0)), port(2)))
}
