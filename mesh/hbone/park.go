package hbone

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultParkAfter is how long a connection sends nothing until no goroutine waits for it any more.
const DefaultParkAfter = 250 * time.Millisecond

// Parker watches idle connections, without a goroutine for each. One does for a process. It must be closed, after the
// relays that use it have ended.
type Parker struct {
	file *os.File // of the epoll instance, in which the connections are
	raw  syscall.RawConn
	wg   sync.WaitGroup

	mu     sync.Mutex // guards what follows; taken after a relay's
	next   uint64
	parked map[uint64]*relay
}

// NewParker returns a parker, which the caller must close.
func NewParker() (*Parker, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a parker: epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime waits for it like for any other descriptor
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make a parker: %w", err)
	}
	p := &Parker{file: os.NewFile(uintptr(fd), "parker"), parked: make(map[uint64]*relay)}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		_ = p.file.Close()
		return nil, fmt.Errorf("make a parker: %w", err)
	}
	p.wg.Go(p.watch)
	return p, nil
}

// Close ends the watch. Relays that are still parked are not woken by their connections any more, only by their streams and
// contexts.
func (p *Parker) Close() error {
	err := p.file.Close()
	p.wg.Wait()
	return err
}

// Parked returns how many connections are parked.
func (p *Parker) Parked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.parked)
}

// watch wakes relays whose connections have something to say.
func (p *Parker) watch() {
	events := make([]unix.EpollEvent, 64)
	var n int
	for {
		err := p.raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events, 0)
			return err == nil && n > 0 || err != nil && err != unix.EINTR
		})
		if err != nil {
			return
		}
		for _, ev := range events[:max(n, 0)] {
			id := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			p.mu.Lock()
			r := p.parked[id]
			p.mu.Unlock()
			if r != nil {
				r.mu.Lock()
				r.parking.wakeLocked(r)
				r.mu.Unlock()
			}
		}
	}
}

// add watches a relay's connection until it has something to say, once.
func (p *Parker) add(r *relay, known bool) (id uint64, err error) {
	p.mu.Lock()
	p.next++
	id = p.next
	p.parked[id] = r
	p.mu.Unlock()
	ev := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	if !r.waiting {
		ev.Events |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	op := unix.EPOLL_CTL_ADD
	if known {
		op = unix.EPOLL_CTL_MOD
	}
	ctl := func(epfd uintptr) {
		cerr := r.raw.Control(func(fd uintptr) { err = unix.EpollCtl(int(epfd), op, int(fd), &ev) })
		err = errors.Join(err, cerr)
	}
	if cerr := p.raw.Control(ctl); cerr != nil || err != nil {
		p.forget(id)
		return 0, errors.Join(err, cerr)
	}
	return id, nil
}

func (p *Parker) forget(id uint64) {
	p.mu.Lock()
	delete(p.parked, id)
	p.mu.Unlock()
}

// parking is what a relay knows of being parked. A nil parking never parks.
type parking struct {
	parker *Parker
	after  time.Duration
	sent   uint64 // the counter when the time last began
	armed  bool   // the time has begun

	known  bool   // the connection is in the epoll instance; guarded, with what follows, by the relay's mu
	parked bool   // no goroutine is in up
	id     uint64 // while parked
}

func (cfg Relayer) parkAfter() time.Duration {
	if cfg.ParkAfter == 0 {
		return DefaultParkAfter
	}
	return cfg.ParkAfter
}

// restart begins the time after which isTime is true. After having been parked it begins with the first payload: a deadline
// that passes before the first read would keep it from happening.
func (p *parking) restart(r *relay) {
	if p == nil {
		return
	}
	p.armed = true
	p.sent = r.counters.Sent.Load()
	_ = r.conn.SetReadDeadline(time.Now().Add(p.after))
}

// isTime tells whether a read has ended because it is time to think of parking.
func (p *parking) isTime(err error) bool {
	return p != nil && errors.Is(err, os.ErrDeadlineExceeded)
}

// park leaves the relay to the parker, if nothing was sent since the time began, and returns whether it did. It is the last
// that up's goroutine does to a parked relay.
func (r *relay) park() bool {
	r.flush()
	p := r.parking
	if r.counters.Sent.Load() != p.sent {
		p.restart(r)
		return false
	}
	return r.leave()
}

// leave is park whatever was sent, which must be flushed.
func (r *relay) leave() bool {
	p := r.parking
	_ = r.conn.SetReadDeadline(time.Time{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.upDone && r.downDone {
		return false // up finds conn closed
	}
	p.parked = true
	id, err := p.parker.add(r, p.known)
	if err != nil {
		p.parked = false // then it waits as it does without a parker
		return false
	}
	p.known, p.id = true, id
	return true
}

// wakeLocked starts up again, if it is parked. The relay's mu must be held.
func (p *parking) wakeLocked(r *relay) {
	if p == nil || !p.parked {
		return
	}
	p.parked = false
	p.parker.forget(p.id)
	p.armed = false
	go r.run()
}
