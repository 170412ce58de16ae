package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// Conn is an HTTP/2 connection, of a client or a server. Its methods may be called concurrently. It does nothing until Run.
type Conn struct {
	t      Transport
	cfg    Config
	server bool
	handle func(*Stream) // server

	heard atomic.Bool  // something was read since keepalive last looked
	begun time.Time    // immutable
	last  atomic.Int64 // when something was read, in nanoseconds since begun
	rd    reader       // of the goroutine in Run

	done chan struct{}  // closed when the connection has ended
	wg   sync.WaitGroup // handlers and flushers; Run waits for it

	mu        sync.Mutex // guards what follows; never held across I/O
	ended     error      // why the connection has ended; nothing happens any more once it is set
	cause     error      // what was found first, if somebody aborted the transport
	streams   map[uint32]*Stream
	own       int    // streams of this side in streams
	reserved  int    // streams that are promised to callers of Reserve
	nextID    uint32 // of the next stream of this side
	lastID    uint32 // the latest stream of the peer that is served, or was refused
	seenID    uint32 // the latest stream of the peer
	closed    closed // server
	handlers  int    // goroutines in handle
	peer      peerSettings
	keepalive *time.Timer
	pinging   bool // a keepalive PING is not answered yet
	stalled   stall
	settings  *time.Timer
	shutdown  shutdownState
	linger    *time.Timer
	recv      recvWindow
	send      sender
}

// peerSettings are the peer's SETTINGS, or what holds until they come (RFC 9113 section 6.5.2).
type peerSettings struct {
	seen          bool
	maxFrame      uint32
	window        int64
	maxStreams    uint32
	maxHeaderList uint32
}

// stall is a write that was under way when it was last looked.
type stall struct {
	write uint64 // of sender.writes
	since time.Time
}

// recvWindow is the connection's window for the peer.
type recvWindow struct {
	open     int64 // bytes that the peer may still send
	buffered int64 // bytes that wait in streams to be read
	held     int64 // size of the buffers in which they are, and of those that are being read
	room     sync.Cond
	waiter   buffer.Waiter // of the budget
	waiting  bool          // for it: nothing is read meanwhile
}

// preface is what a client sends first (RFC 9113 section 3.4).
const preface = http2.ClientPreface

// initialWindow is the flow-control window before SETTINGS (RFC 9113 section 6.9.2).
const initialWindow = 65535

// minMaxFrame is the frame size that everybody accepts (RFC 9113 section 4.2).
const minMaxFrame = 16 << 10

// NewClient returns the client's side of a connection over t, which it owns. The caller must call Run. The connection's
// preface goes out with the first stream, or with Flush.
func NewClient(t Transport, cfg Config) *Conn {
	c := newConn(t, cfg, false)
	c.nextID = 1
	c.appendLocked([]byte(preface))
	c.mustFrame(c.send.framer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: c.cfg.MaxFrameSize},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.cfg.MaxHeaderList}))
	c.grantLocked()
	return c
}

// NewServer returns the server's side of a connection over t, which it owns. The caller must call Run. handle is called in
// a goroutine of its own for each stream, as soon as its request header is complete; when it returns, the stream is closed.
func NewServer(t Transport, cfg Config, handle func(*Stream)) *Conn {
	c := newConn(t, cfg, true)
	c.nextID = 2
	c.handle = handle
	c.mustFrame(c.send.framer.WriteSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.cfg.MaxStreams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: c.cfg.MaxFrameSize},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.cfg.MaxHeaderList}))
	c.grantLocked()
	return c
}

func newConn(t Transport, cfg Config, server bool) *Conn {
	c := &Conn{
		t:       t,
		cfg:     cfg.withDefaults(server),
		server:  server,
		begun:   time.Now(),
		done:    make(chan struct{}),
		streams: make(map[uint32]*Stream),
		peer: peerSettings{
			maxFrame: minMaxFrame, window: initialWindow, maxStreams: 1<<32 - 1, maxHeaderList: 1<<32 - 1,
		},
		recv: recvWindow{open: initialWindow},
	}
	c.send.window = initialWindow
	c.send.room.L = &c.mu
	c.recv.room.L = &c.mu
	c.recv.waiter.Wake = func() {
		c.mu.Lock()
		c.recv.room.Broadcast()
		c.mu.Unlock()
	}
	c.send.framer = http2.NewFramer(pendingWriter{c}, nil)
	c.send.enc = hpack.NewEncoder(&c.send.block)
	c.rd.init(c)
	return c
}

// mustFrame is for frames of ours whose fields are always valid, written to memory.
func (c *Conn) mustFrame(err error) {
	if err != nil {
		panic(fmt.Sprintf("h2: write a frame of ours: %v", err))
	}
}

// Run reads the connection until it ends, and then waits for its handlers. It returns nil after an orderly end, else a
// *ConnError. It must be called exactly once.
func (c *Conn) Run() error {
	c.mu.Lock()
	if c.cfg.SettingsTimeout > 0 {
		c.settings = time.AfterFunc(c.cfg.SettingsTimeout, c.settingsLate)
	}
	if c.cfg.KeepaliveInterval > 0 {
		c.keepalive = time.AfterFunc(c.cfg.KeepaliveInterval, c.keepaliveTick)
	}
	if c.server {
		c.kickAsyncLocked(false)
	}
	c.mu.Unlock()

	err := c.end(c.readLoop())
	c.wg.Wait()
	c.mu.Lock()
	for c.send.writing { // by a stream's user, perhaps, who has not noticed yet
		c.send.room.Wait()
	}
	c.mu.Unlock()
	c.t.Release()
	return err
}

// end brings the connection to its end: it tells the peer why, if that is worth saying, and every stream.
func (c *Conn) end(readErr error) error {
	c.rd.handOver()
	c.rd.release()
	c.mu.Lock()
	err := c.diagnoseLocked(readErr)
	var v *violation
	accuse := errors.As(readErr, &v) && c.cause == nil
	if accuse {
		defer time.AfterFunc(lingerTime, c.t.Abort).Stop()
		c.mustFrame(c.send.framer.WriteGoAway(c.lastID, v.code, []byte(v.reason)))
		c.send.closing = true
		c.kickLocked()
		for c.send.writing {
			c.send.room.Wait()
		}
	}
	if err == nil {
		c.ended = &ConnError{Err: ErrClosed}
	} else {
		c.ended = err
	}
	ended := c.ended
	streams := c.streams
	c.streams, c.own = nil, 0
	for _, s := range streams {
		s.werr = ended
		s.wcond.Broadcast()
	}
	c.send.room.Broadcast()
	c.dropPendingLocked()
	for _, t := range []*time.Timer{c.keepalive, c.settings, c.linger, c.shutdown.timer} {
		if t != nil {
			t.Stop()
		}
	}
	c.mu.Unlock()

	for _, s := range streams {
		s.endRead(ended)
	}
	if accuse {
		c.readOn()
	}
	c.t.Abort()
	close(c.done)
	c.changed()
	return err
}

// readOn reads until the peer closes, or lingerTime is over: an accusation must not be destroyed by the reset that closing
// with unread data brings.
func (c *Conn) readOn() {
	var b [512]byte
	for {
		if _, err := c.t.Read(b[:]); err != nil {
			return
		}
	}
}

// diagnoseLocked says why the connection ended, nil if it was in order.
func (c *Conn) diagnoseLocked(readErr error) error {
	e := &ConnError{Code: c.shutdown.peerCode, Remote: true, Err: readErr}
	if c.cause != nil {
		e.Err = c.cause
		e.Remote = !errors.Is(c.cause, ErrClosed)
	}
	var v *violation
	unused := len(c.streams) == 0 && c.reserved == 0
	switch {
	case errors.As(e.Err, &v):
		e.Code, e.Remote = v.code, false
	case unused && c.shutdown.begun && !errors.Is(e.Err, ErrClosed) && !errors.Is(e.Err, ErrSettingsTimeout):
		return nil // both want it to end, and it does not matter how
	case c.cause != nil:
	case unused && (c.send.closed || c.peer.seen && errors.Is(readErr, io.EOF)):
		return nil
	case errors.Is(readErr, io.EOF):
		e.Err = ErrPeerClosed
	}
	return e
}

// abort ends the connection from outside of Run, because of cause.
func (c *Conn) abort(cause error) {
	c.mu.Lock()
	c.abortLocked(cause)
	c.mu.Unlock()
}

func (c *Conn) abortLocked(cause error) {
	if c.ended == nil && c.cause == nil {
		c.cause = cause
		c.send.room.Broadcast()
		c.recv.room.Broadcast()
		c.t.Abort()
	}
}

// Close ends the connection and its streams at once. It does not wait: Run returns soon after.
func (c *Conn) Close() { c.abort(ErrClosed) }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, or nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Idle tells whether no stream is open or promised.
func (c *Conn) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams) == 0 && c.reserved == 0
}

// LastStream returns the number of the peer's latest stream, zero if it has opened none.
func (c *Conn) LastStream() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastID
}

// Streams returns the number of open streams.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Active returns the number of this side's streams that are open or promised.
func (c *Conn) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.own + c.reserved
}

// SettingsSeen tells whether the peer has sent its SETTINGS, and so speaks HTTP/2.
func (c *Conn) SettingsSeen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer.seen
}

// HeardWithin tells whether the peer has sent its SETTINGS, and anything at all in the time d that has just passed.
func (c *Conn) HeardWithin(d time.Duration) bool {
	return time.Since(c.begun)-time.Duration(c.last.Load()) <= d && c.SettingsSeen()
}

// LocalAddr and RemoteAddr are the transport's.
func (c *Conn) LocalAddr() net.Addr { return c.t.LocalAddr() }

// RemoteAddr is the address of the peer.
func (c *Conn) RemoteAddr() net.Addr { return c.t.RemoteAddr() }

// changed tells the owner that the number of streams that can be opened may have changed.
func (c *Conn) changed() {
	if c.cfg.OnChange != nil {
		c.cfg.OnChange(c)
	}
}

// Flush sends what is pending, if nothing has sent it yet.
func (c *Conn) Flush() {
	c.mu.Lock()
	c.kickLocked()
	c.mu.Unlock()
}

// limitLocked is how many streams this side may have open.
func (c *Conn) limitLocked() int {
	if !c.peer.seen {
		return 1
	}
	n := c.peer.maxStreams
	if c.cfg.MaxSendStreams > 0 {
		n = min(n, c.cfg.MaxSendStreams)
	}
	return int(min(n, 1<<30))
}

// Available returns how many streams could be opened now, beyond those that are reserved.
func (c *Conn) Available() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.availableLocked()
}

func (c *Conn) availableLocked() int {
	if c.refusesLocked() {
		return 0
	}
	return max(0, c.limitLocked()-c.own-c.reserved)
}

// refusesLocked tells whether this side opens no more streams.
func (c *Conn) refusesLocked() bool {
	return c.ended != nil || c.cause != nil || c.shutdown.begun || c.shutdown.peerBegun || c.nextID > 1<<31-1
}

// Draining tells whether the connection opens no more streams: it or the peer is shutting down, or it has ended.
func (c *Conn) Draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusesLocked()
}

// Reserve promises the caller one stream, and returns whether there was one. The caller must then call OpenReserved or
// Unreserve.
func (c *Conn) Reserve() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.availableLocked() == 0 {
		return false
	}
	c.reserved++
	return true
}

// Unreserve gives back what Reserve promised.
func (c *Conn) Unreserve() {
	c.mu.Lock()
	c.reserved--
	c.finishIfIdleLocked()
	c.mu.Unlock()
	c.changed()
}

// Open sends a request and returns its stream, without waiting for the response. It returns ErrNoStreams if all streams are
// in use, ErrDraining if no more are opened, ErrTooLarge, or why the connection has ended. With end, the request has no body.
func (c *Conn) Open(fields []Field, end bool) (*Stream, error) {
	if !c.Reserve() {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case c.ended != nil:
			return nil, c.ended
		case c.refusesLocked():
			return nil, ErrDraining
		}
		return nil, ErrNoStreams
	}
	return c.OpenReserved(fields, end)
}

// OpenReserved is Open with a stream that Reserve promised. It gives the promise back if it fails.
func (c *Conn) OpenReserved(fields []Field, end bool) (*Stream, error) {
	s, _, err := c.openReserved(fields, nil, end, true)
	return s, err
}

// AddReserved is OpenReserved that keeps the header until Flush, so that it goes out together with what follows. The caller
// must call Flush before it waits for anything.
func (c *Conn) AddReserved(fields []Field, end bool) (*Stream, error) {
	s, _, err := c.openReserved(fields, nil, end, false)
	return s, err
}

// OpenReservedWith is OpenReserved with the beginning of the request's body, which goes out with the header. It does not wait
// for the peer's windows: it returns how much of it was sent, none if it is large.
func (c *Conn) OpenReservedWith(fields []Field, body []byte) (*Stream, int, error) {
	return c.openReserved(fields, body, false, true)
}

func (c *Conn) openReserved(fields []Field, body []byte, end, now bool) (*Stream, int, error) {
	c.mu.Lock()
	err := c.waitRoomLocked()
	c.reserved--
	switch {
	case c.ended != nil:
		err = c.ended
	case c.cause != nil:
		err = &ConnError{Remote: true, Err: c.cause}
	case err == nil && (c.shutdown.peerBegun || c.nextID > 1<<31-1):
		err = ErrDraining
	case err == nil && listSize(fields) > uint64(c.peer.maxHeaderList):
		err = ErrTooLarge
	}
	if err != nil {
		c.finishIfIdleLocked()
		c.mu.Unlock()
		c.changed()
		return nil, 0, err
	}
	s := c.newStreamLocked(c.nextID)
	c.nextID += 2
	c.own++
	s.localEnd = end
	c.appendHeadersLocked(s.id, fields, end)
	n := 0
	if len(body) > 0 && len(body) <= smallWrite && s.writableLocked() && c.send.pendLen+len(body) <= maxPendingData {
		n = int(min(int64(len(body)), s.sendWindow, c.send.window))
		s.sendWindow -= int64(n)
		c.send.window -= int64(n)
		c.appendDataLocked(s.id, body[:n], false)
	}
	if now {
		c.kickLocked()
	}
	c.mu.Unlock()
	return s, n, nil
}

func (c *Conn) newStreamLocked(id uint32) *Stream {
	s := &Stream{c: c, id: id, sendWindow: c.peer.window, recvOpen: int64(c.cfg.StreamWindow)}
	s.wcond.L = &c.mu
	s.rcond.L = &s.rmu
	c.streams[id] = s
	return s
}

// removeLocked takes a stream out that has ended in both directions. The caller must call changed after unlocking.
func (c *Conn) removeLocked(s *Stream) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	if c.isOwn(s.id) {
		c.own--
	}
	c.finishIfIdleLocked()
}

// isOwn tells whether a stream's number is one of this side's.
func (c *Conn) isOwn(id uint32) bool { return (id&1 == 1) != c.server }

// listSize is the size of a header list (RFC 9113 section 6.5.2).
func listSize(fields []Field) uint64 {
	var n uint64
	for i := range fields {
		n += uint64(fields[i].Size())
	}
	return n
}

// sender is the way out. What it writes comes from pend, to which anyone adds, and from streams that wait for their turn.
type sender struct {
	pend    []byte // pooled; nil while pendLen is zero
	pendLen int
	tail    dataFrame     // the latest DATA in pend
	framer  *http2.Framer // writes to pend
	enc     *hpack.Encoder
	block   bytes.Buffer // of enc

	writing bool      // somebody writes to the transport
	writes  uint64    // begun and done: odd while one is under way
	turns   []*Stream // who writes next, in order
	kicks   uint32    // writes that began with something small
	gather  int       // how many of them are still worth a yield
	room    sync.Cond // pend or writing has changed

	window  int64     // bytes of payload that the peer takes on the connection
	windowq []*Stream // who waits for window, in order

	closing bool // close when everything is sent
	closed  bool
}

// dataFrame is where in what is pending a stream's DATA frame begins and ends.
type dataFrame struct {
	id      uint32
	at, end int
}
