"""Every number that a decision rests on, with its reason. Passed in as one frozen value."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    search_min_s: float = 0.05
    """An automatic rank leads no sooner than this after it began to search: an announcement needs
    1.3 ms to arrive where the daemons are warm, so most nodes hear the first leader in time."""

    search_max_s: float = 0.25
    """... and no later, drawn at random in between. A cold start of two nodes is to take 0.6 s in
    all. Two that draw alike find each other's adverts and settle it (conflict)."""

    query_after_s: tuple[float, ...] = (0.0, 1.0, 3.0, 7.0, 15.0)
    """When a searcher asks the network again, counted from the start of its search; then every
    query_every_s. The library stops after 14 s, and at 30% loss 3 of 32 never resolved."""

    query_every_s: float = 15.0

    query_jitter: float = 0.2
    """Each interval is stretched by up to this share, so that nodes do not ask in chorus."""

    try_stagger_s: float = 0.25
    """While one leader's addresses are tried, the next advert is tried this much later (RFC 8305):
    a ghost's silence must not stand before a live leader."""

    connect_s: float = 3.0
    """One connect attempt of the peer link: no ghost may keep us from leading for longer."""

    first_word_s: float = 2.0
    """A leader answers a Join at once. After this another advert is tried, if there is one."""

    retry_min_s: float = 0.1
    """First pause before an address that refused a connection is tried again; doubles."""

    retry_max_s: float = 5.0

    contest_every_s: float = 1.0
    """How often a leader asks a rival that it can reach, and that has not yielded, again."""

    reach_s: float = 6.0
    """For a follower to find out which of the leader's addresses it reaches."""

    prepare_timeout_s: float = 6.0
    """From Prepare to the last Ack. One proof connection may take 3 s (two lost SYNs). Doubles with
    each attempt in which somebody was silent: where half of all packets are lost, 6 s are never
    enough for all of eight nodes."""

    prepare_timeout_max_s: float = 24.0

    reseal_min_s: float = 0.5
    """First pause after an aborted seal; doubles. A NACK by firewall does not heal in a tight
    loop, a node that has just left does no harm to wait for."""

    reseal_max_s: float = 5.0

    unsure_s: float = 5.0
    """How long a follower that acknowledged and lost its link tries to learn the outcome."""

    last_call_s: float = 3.0
    """With min:max sizes: seal when nobody new has come for this long."""

    rejoin_slack_s: float = 5.0
    """After a loss every known survivor is waited for: its stop grace, and this much to join."""

    progress_every_s: float = 0.2
    """Progress is sent at the first change at once, then at most this often: 1,000 joins in a
    second must not become 1,000,000 lines."""

    heartbeat_every_s: float = 1.0
    """From the leader's daemon; the others answer."""

    suspect_after_s: float = 3.0
    """Silence of this length makes suspect; then fresh connections decide. At 30% loss most links
    are silent for longer at least once a minute."""

    moved_after_s: float = 2.2
    """... and of two heartbeats, where a leader advertises other addresses than its link's."""

    probe_s: float = 1.0
    """For one fresh connection, its question and its answer."""

    probe_failures: int = 3
    """This many in a row, and nothing heard meanwhile: lost, while gathering."""

    silence_sealed_s: float = 15.0
    """... and in a sealed round no sooner than this: torch's own patience (5 s, three times)."""

    heartbeats_missed: int = 10
    """A client that says Alive, and has missed so many in a row, is stopped: lost. Counted, not
    measured, so that a machine that was suspended as a whole loses nobody at its resume."""

    link_stale_s: float = 30.0
    """A link that stays silent for this long although its other side answers fresh connections is
    of no use: something between has forgotten it."""

    absent_every_s: float = 5.0
    """A host whose daemon is gone is asked this often whether it is there itself."""

    attach_min_s: float = 0.5
    """First pause before a daemon tries again to attach to its round's leader; doubles."""

    attach_max_s: float = 5.0

    hint_after_s: float = 10.0
    """With nobody heard for this long, one hint on what to look at."""

    adopt_s: float = 10.0
    """An eval form's lease is kept this long until the evaluating shell takes it over."""

    first_frame_s: float = 5.0
    """A peer that connects and says nothing is hung up on after this."""

    hail_s: float = 20.0
    """... and one that only asks who is there, or for a test, after this."""

    realm_kept_s: float = 10.0
    """After a job is over here its others may still ask what became of us: a lost packet is on its
    way, and with no answer they would believe that this daemon is gone."""

    port_first: int = 29_500
    """torch's own default port; a job's search for a free one starts at this plus a hash."""

    port_count: int = 500

    seats_max: int = 4_096
    """Local participants of one job: more than any machine has cores for."""

    jobs_max: int = 1_024
    """Jobs on one daemon; each costs some KiB."""

    jobs_per_user_max: int = 256
    """A quarter of them: one user must not shut out the rest."""

    seats_per_user_max: int = 4_096
    """Local participants in all jobs of one user, those that run included; each holds a pidfd."""

    links_unbound_max: int = 256
    """Accepted connections that have not said yet what they want."""

    adverts_per_label_max: int = 16
    """Rivals and ghosts of one job worth remembering; forged ones push out the oldest suspect."""

    adverts_max: int = 4_096
    """Adverts of all jobs on the LAN kept in memory, 300 bytes each; the oldest go."""

    unsaid_max_s: float = 30.0
    """For the end of a participant to be told to rank 0's daemon, should that be gone just then."""

    cancel_s: float = 8.0
    """For all nodes of a job to confirm that it has ended there; the client waits for 10 s."""

    cancel_step_s: float = 2.0
    """Whoever passes a cancel on gives those after it this much less, to answer in time itself."""

    cancel_kept_s: float = 30.0
    """A daemon that could not be told of a cancel is told when it comes back within this."""

    former_max: int = 64
    """Jobs whose last ranks are remembered, 100 bytes a node."""

    story_max: int = 40
    """Transitions kept for reports and errors."""


def doubled_s(first_s: float, times: int, most_s: float) -> float:
    """What starts at `first_s` and has doubled so many times, but is `most_s` at most."""
    return min(first_s * 2.0 ** min(times, 30), most_s)
