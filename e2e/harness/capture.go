package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
)

// Flow is one direction of a TCP connection as a link saw it.
type Flow struct {
	Src, Dst netip.AddrPort
	// First and Last are when its first and last packet passed; Opened when its SYN did, zero if that was not seen.
	First, Last, Opened time.Time
	// Packets counts all, Bytes the payload.
	Packets int
	Bytes   int64
	// Marked is when a packet carried one of the marks first, MarkedLast when last; zero if none did. Mark is the first one found.
	Marked, MarkedLast time.Time
	Mark               string
	// Head is the beginning of the payload, at most headSize bytes; it is of the stream's start only if Opened is set.
	Head []byte

	tail []byte // the end of the payload so far, for marks that a boundary splits
}

// headSize is how much of a flow's payload is kept.
const headSize = 16

// TLS tells whether the payload seen so far can be TLS 1.2 or 1.3 (RFC 8446, section 5.1): a flow whose start was seen begins with
// a handshake record. A flow without payload can be anything, and counts as TLS.
func (f Flow) TLS() bool {
	if f.Bytes == 0 || f.Opened.IsZero() {
		return true
	}
	return len(f.Head) < 3 || f.Head[0] == 0x16 && f.Head[1] == 3 && f.Head[2] <= 3
}

// Tunnel tells whether the flow is to or from the port for tunnels.
func (f Flow) Tunnel() bool { return f.Dst.Port() == api.PortHBONE || f.Src.Port() == api.PortHBONE }

// String is the flow in one line.
func (f Flow) String() string {
	s := fmt.Sprintf("%s %s -> %s, %d packets, %d bytes of payload", f.First.Format("15:04:05.000"), f.Src, f.Dst, f.Packets, f.Bytes)
	if f.Opened.IsZero() {
		s += ", opened before the capture"
	}
	if !f.Marked.IsZero() {
		s += fmt.Sprintf(", %q in clear from %s to %s", f.Mark, f.Marked.Format("15:04:05.000"), f.MarkedLast.Format("15:04:05.000"))
	} else if f.Bytes > 0 {
		s += fmt.Sprintf(", begins with %q", f.Head)
	}
	return s
}

// Capture listens on a link.
type Capture struct {
	// Node is whose link it is.
	Node string

	file  *os.File
	marks []string
	done  chan struct{}

	mu    sync.Mutex // guards the fields below
	flows map[[2]netip.AddrPort]*Flow
	ended []*Flow // those whose ports were used again
	err   error
}

// captureBuffer is how many bytes of packets the kernel keeps for us while we do not get to read.
const captureBuffer = 128 << 20

// Capture starts to listen on a node's uplink, over which everything passes that it exchanges with the other nodes, in both
// directions, and looks for marks in payloads. The caller must Stop it.
func (c *Cluster) Capture(node string, marks ...string) (*Capture, error) {
	machine, err := c.Node(node)
	if err != nil {
		return nil, err
	}
	var file *os.File
	err = machine.Do(func() error {
		var err error
		file, err = packetSocket(machine.Uplink)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", machine.Uplink, node, err)
	}
	capture := &Capture{Node: node, file: file, marks: marks, done: make(chan struct{}), flows: map[[2]netip.AddrPort]*Flow{}}
	go func() {
		defer close(capture.done)
		capture.read()
	}()
	return capture, nil
}

// packetSocket opens a socket that sees every frame of an interface of the calling thread's network namespace.
func packetSocket(device string) (*os.File, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "packets of "+device)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		file.Close()
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		file.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	return file, nil
}

func (c *Capture) read() {
	frame := make([]byte, 256<<10)
	for {
		n, err := c.file.Read(frame)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENETDOWN):
			continue // the link goes down with its node; the socket hears no more
		case err != nil:
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		if s, ok := parseFrame(frame[:n]); ok {
			c.mu.Lock()
			c.note(s, time.Now())
			c.mu.Unlock()
		}
	}
}

// note adds a segment; c.mu is held.
func (c *Capture) note(s segment, now time.Time) {
	key := [2]netip.AddrPort{s.src, s.dst}
	flow, ok := c.flows[key]
	if !ok || s.syn && flow.Bytes > 0 {
		if ok { // a new connection from a port that was used before
			c.ended = append(c.ended, flow)
		}
		flow = &Flow{Src: s.src, Dst: s.dst, First: now}
		c.flows[key] = flow
	}
	flow.Last = now
	flow.Packets++
	if s.syn && flow.Opened.IsZero() {
		flow.Opened = now
	}
	if len(s.payload) == 0 {
		return
	}
	flow.Bytes += int64(len(s.payload))
	if room := headSize - len(flow.Head); room > 0 {
		flow.Head = append(flow.Head, s.payload[:min(room, len(s.payload))]...)
	}
	c.search(flow, s.payload, now)
}

// search looks for marks in a segment's payload, and across its boundary to the one before.
func (c *Capture) search(flow *Flow, payload []byte, now time.Time) {
	longest := 0
	for _, mark := range c.marks {
		longest = max(longest, len(mark))
		boundary := append(slices.Clip(flow.tail), payload[:min(len(payload), len(mark)-1)]...)
		if bytes.Contains(payload, []byte(mark)) || bytes.Contains(boundary, []byte(mark)) {
			if flow.Marked.IsZero() {
				flow.Marked, flow.Mark = now, mark
			}
			flow.MarkedLast = now
		}
	}
	if longest > 1 {
		flow.tail = append(flow.tail, payload[max(0, len(payload)-longest+1):]...)
		flow.tail = flow.tail[max(0, len(flow.tail)-longest+1):]
	}
}

// Flows returns what was seen so far between the given addresses, in the order of first packets; all flows if none is given.
func (c *Capture) Flows(among ...netip.Addr) []Flow {
	c.mu.Lock()
	defer c.mu.Unlock()
	var flows []Flow
	take := func(flow *Flow) {
		if len(among) == 0 || slices.Contains(among, flow.Src.Addr()) && slices.Contains(among, flow.Dst.Addr()) {
			copied := *flow
			copied.Head, copied.tail = slices.Clone(flow.Head), nil
			flows = append(flows, copied)
		}
	}
	for _, flow := range c.ended {
		take(flow)
	}
	for _, flow := range c.flows {
		take(flow)
	}
	slices.SortFunc(flows, func(a, b Flow) int { return a.First.Compare(b.First) })
	return flows
}

// Stop ends the capture. It fails if the capture missed packets, and so proves nothing. A second Stop does nothing.
func (c *Capture) Stop() error {
	select {
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		err := c.err
		c.err = nil
		return err
	default:
	}
	dropped, err := c.dropped()
	c.file.Close()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return fmt.Errorf("capture on %s: %w", c.Node, c.err)
	case err != nil:
		return fmt.Errorf("capture on %s: %w", c.Node, err)
	case dropped > 0:
		return fmt.Errorf("capture on %s: the kernel dropped %d packets of it", c.Node, dropped)
	}
	return nil
}

func (c *Capture) dropped() (uint32, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var failed error
	err = raw.Control(func(fd uintptr) {
		stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return stats.Drops, nil
}

// InClear returns the flows in which a mark was found.
func InClear(flows []Flow) []Flow {
	return slices.DeleteFunc(slices.Clone(flows), func(f Flow) bool { return f.Marked.IsZero() })
}

// NotTunnelled returns the flows that are not TLS to or from the port for tunnels.
func NotTunnelled(flows []Flow) []Flow {
	return slices.DeleteFunc(slices.Clone(flows), func(f Flow) bool { return f.Tunnel() && f.TLS() && f.Marked.IsZero() })
}

// Describe lists flows, at most limit of them, one a line.
func Describe(flows []Flow, limit int) string {
	var b strings.Builder
	for i, flow := range flows {
		if i == limit {
			fmt.Fprintf(&b, "... and %d more\n", len(flows)-limit)
			break
		}
		fmt.Fprintln(&b, flow)
	}
	return b.String()
}

// Addresses returns the addresses of pods.
func (c *Cluster) Addresses(ctx context.Context, namespace string) ([]netip.Addr, error) {
	pods, err := c.Pods(ctx, namespace, "")
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, pod := range pods {
		for _, ip := range pod.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return nil, fmt.Errorf("address of pod %s/%s: %w", namespace, pod.Name, err)
			}
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}
