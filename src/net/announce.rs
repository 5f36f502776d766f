//! Telling the network where a VM is now: a reverse ARP request from each card (RFC 903), a few times.

use std::time::Duration;

use crate::nic::MacAddress;
use crate::packet::{ETH_RARP, Frame};
use crate::registry::NetRegistry;

/// When announcements are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceParameters {
    /// Before the second one (ms).
    pub initial_ms: u64,
    /// The longest pause (ms).
    pub max_ms: u64,
    /// How many.
    pub rounds: u64,
    /// What every pause is longer than the one before (ms).
    pub step_ms: u64,
    /// The cards, by name; all if there are none here.
    pub interfaces: Vec<String>,
}

impl Default for AnnounceParameters {
    fn default() -> Self {
        Self { initial_ms: 50, max_ms: 550, rounds: 5, step_ms: 100, interfaces: Vec::new() }
    }
}

impl AnnounceParameters {
    /// The pauses between rounds, in ms.
    fn pauses(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.rounds.saturating_sub(1))
            .map(|round| self.initial_ms.saturating_add(self.step_ms.saturating_mul(round)).min(self.max_ms))
    }
}

/// The frame: "who has this hardware address? I have."
fn frame(mac: &MacAddress) -> Vec<u8> {
    let mut data = vec![0xff; 6];
    data.extend(mac);
    data.extend(ETH_RARP.to_be_bytes());
    data.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    data.extend(mac);
    data.extend([0; 4]);
    data.extend(mac);
    data.extend([0; 4]);
    data.resize(60, 0);
    data
}

impl NetRegistry {
    /// Announces the cards: at once, and then at growing intervals. Returns at once.
    pub fn self_announce(&self, parameters: AnnounceParameters) {
        let this = self.clone();
        this.announce_round(&parameters);
        tokio::task::spawn_local(async move {
            for pause in parameters.pauses() {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                this.announce_round(&parameters);
            }
        });
    }

    fn announce_round(&self, parameters: &AnnounceParameters) {
        for nic in self.inner.nics.borrow().iter() {
            let wanted = parameters.interfaces.is_empty() || parameters.interfaces.contains(&nic.info.name);
            if let Some(netdev) = nic.netdev.as_ref().filter(|_| wanted) {
                netdev.to_host_always(&Frame::new(frame(&nic.info.mac)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_rounds_with_growing_pauses() {
        assert_eq!(AnnounceParameters::default().pauses().collect::<Vec<_>>(), [50, 150, 250, 350]);
        let long = AnnounceParameters { rounds: 9, ..AnnounceParameters::default() };
        assert_eq!(long.pauses().max(), Some(550));
    }

    #[test]
    fn the_frame_is_a_reverse_arp_request() {
        let data = frame(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!((data.len(), &data[12..14], &data[20..22]), (60, &[0x80, 0x35][..], &[0, 3][..]));
    }
}
