package hbone

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeGrace is how old a half-closed connection is when its probes begin: most do not live that long.
	probeGrace = 5 * time.Second
	// deadProbes is how many probes, or repetitions of what was sent, stay unanswered until the peer counts as gone.
	deadProbes = 3
)

// silence watches a half-closed relay, whose lock guards it: TCP connections on which nothing is sent are probed, and on
// others it is looked whether what was sent is acknowledged.
type silence struct {
	limit time.Duration // without a byte moved; not positive: none
	every time.Duration // between probes, and between looks; not positive: neither
	begun bool
	moved uint64
	since time.Time // when something moved, as far as it was looked
}

// look returns why the relay is to end, or else after how long to look again; zero: never. moved is what has moved so far,
// and conns are the connections.
func (s *silence) look(moved uint64, conns ...*net.TCPConn) (time.Duration, error) {
	now := time.Now()
	switch {
	case !s.begun:
		s.begun = true
		s.moved, s.since = moved, now
		for _, c := range conns {
			s.probe(c)
		}
	case moved != s.moved:
		s.moved, s.since = moved, now
	case s.limit > 0 && now.Sub(s.since) >= s.limit:
		return 0, ErrHalfCloseTimeout
	}
	next := max(s.limit, 0)
	if s.every > 0 {
		for _, c := range conns {
			if err := unanswered(c, 2*s.every); err != nil {
				return 0, err
			}
		}
		if next == 0 || s.every < next {
			next = s.every
		}
	}
	return next, nil
}

// probe starts keepalive, which takes 2*every until a peer that is gone is noticed.
func (s *silence) probe(c *net.TCPConn) {
	if s.every <= 0 {
		return
	}
	// An error means that the connection has ended.
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: s.every, Interval: max(s.every/deadProbes, time.Second), Count: deadProbes,
	})
}

// unanswered returns an error if something is under way to the peer, a FIN perhaps, and nothing has come back for so long.
// Keepalive does nothing then, and Linux goes on sending for a quarter of an hour. TCP_USER_TIMEOUT would not do: it also
// ends connections to peers that are alive and keep their window closed.
func unanswered(c *net.TCPConn, long time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil // it is closed
	}
	var info *unix.TCPInfo
	if ctl := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); ctl != nil || err != nil {
		return nil
	}
	// With its window closed a peer is asked ever less often, at last every two minutes, but it answers each time.
	repeated := info.Unacked > 0 && info.Snd_wnd > 0 && info.Retransmits >= deadProbes || info.Probes >= deadProbes
	if quiet := time.Duration(info.Last_ack_recv) * time.Millisecond; repeated && quiet >= long {
		return fmt.Errorf("half-closed, and nothing was acknowledged for %v: %w", quiet, syscall.ETIMEDOUT)
	}
	return nil
}
