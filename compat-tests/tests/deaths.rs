//! A short version of `scripts/soak deaths`.
use lockstep_compat_tests::deaths::play;
use lockstep_compat_tests::stage::Layout::TwoHosts;
use lockstep_compat_tests::stage::on_stage;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(400);

#[test]
fn four_random_deaths_lose_nothing() {
    on_stage(TwoHosts, LIMIT, |stage| {
        let course = play(stage, 3, 4, |text| println!("{text}")).expect("no client notices more than a pause");
        assert!(
            course.deaths.values().sum::<u64>() == 4 && course.puts > 0 && course.bulk_bytes > 0 && course.echoes > 0,
            "{course:?}"
        );
    });
}
