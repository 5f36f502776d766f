use super::*;
use crate::event;
use crate::schema::{COLOExitReason, COLOMode, ShutdownCause};

fn rtc(offset: i64) -> EventMessage {
    EventMessage::at::<event::RtcChange>(&event::RtcChange { offset, qom_path: "/rtc".into() }, Duration::ZERO)
}

#[test]
fn events_look_as_on_qemus_wire() {
    let colo = event::ColoExit { mode: COLOMode::Primary, reason: COLOExitReason::Error };
    let message = EventMessage::at::<event::ColoExit>(&colo, Duration::new(17, 42_000));
    assert_eq!(
        crate::json::to_string(&message.to_value()),
        "{\"timestamp\": {\"seconds\": 17, \"microseconds\": 42}, \"event\": \"COLO_EXIT\", \
         \"data\": {\"mode\": \"primary\", \"reason\": \"error\"}}"
    );
    assert_eq!(EventMessage::from_value(&message.to_value()), Some(message.clone()));
    assert_eq!(message.decode::<event::ColoExit>().unwrap().unwrap(), colo);
    let shutdown = event::Shutdown { guest: false, reason: ShutdownCause::HostQmpQuit };
    let message = EventMessage::at::<event::Shutdown>(&shutdown, Duration::ZERO);
    assert_eq!(message.to_value()["data"], serde_json::json!({"guest": false, "reason": "host-qmp-quit"}));
}

#[test]
fn a_busy_event_goes_out_once_a_second_with_the_newest_data() {
    let mut t = EventThrottle::default();
    let ms = Duration::from_millis;
    assert_eq!(t.offer(rtc(1), ms(0)), Some(rtc(1)));
    assert_eq!(t.offer(rtc(2), ms(10)), None);
    assert_eq!(t.offer(rtc(3), ms(990)), None);
    assert_eq!(t.deadline(), Some(ms(1000)));
    assert_eq!(t.due(ms(999)), []);
    assert_eq!(t.due(ms(1000)), [rtc(3)]);
    assert_eq!(t.offer(rtc(4), ms(1500)), None);
    assert_eq!(t.due(ms(2000)), [rtc(4)]);
    assert_eq!(t.due(ms(3000)), []);
    assert_eq!(t.deadline(), None);
    assert_eq!(t.offer(rtc(5), ms(3001)), Some(rtc(5)));
}

#[test]
fn sources_do_not_share_a_limit_and_most_events_have_none() {
    let mut t = EventThrottle::default();
    let bad = |node: &str| {
        let data = serde_json::from_value::<Map>(serde_json::json!({
            "type": "read", "node-name": node, "sector-num": 0, "sectors-count": 1
        }));
        let data = event::QuorumReportBad::from_members(data.unwrap()).unwrap();
        EventMessage::at::<event::QuorumReportBad>(&data, Duration::ZERO)
    };
    assert!(t.offer(bad("a"), Duration::ZERO).is_some());
    assert!(t.offer(bad("b"), Duration::ZERO).is_some());
    assert!(t.offer(bad("a"), Duration::ZERO).is_none());
    let stop = EventMessage::at::<event::Stop>(&crate::NoArgs, Duration::ZERO);
    for _ in 0..3 {
        assert!(t.offer(stop.clone(), Duration::ZERO).is_some());
    }
}
