package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conntrackTimeout bounds one look-up; the kernel answers at once.
const conntrackTimeout = 100_000 // microseconds

// Conntrack looks into a namespace's connection tracking. Its methods may be called concurrently.
type Conntrack struct {
	mu  sync.Mutex // guards the fields below
	fd  int
	seq uint32
	buf [4096]byte
}

// OpenConntrack opens a socket for look-ups. The caller closes it.
func (n *Namespace) OpenConntrack() (*Conntrack, error) {
	c := &Conntrack{fd: -1}
	err := n.Do(func() error {
		var err error
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err == nil {
		err = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: conntrackTimeout})
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open connection tracking: %w", err)
	}
	return c, nil
}

// Close closes the socket.
func (c *Conntrack) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// Live tells whether connection tracking knows a TCP connection from src to dst, both of one family, that has not ended on
// both sides.
func (c *Conntrack) Live(src, dst netip.AddrPort) (bool, error) {
	live := false
	err := c.ask(tupleQuery{kind: nl.CTA_TUPLE_ORIG, protocol: unix.IPPROTO_TCP, src: src, dst: dst}, func(m message) error {
		var err error
		live, err = m.live()
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look up %s to %s in connection tracking: %w", src, dst, err)
	}
	return live, nil
}

// tupleQuery asks for the connection of which one direction's addresses, both of one family, are known.
type tupleQuery struct {
	kind     uint16 // nl.CTA_TUPLE_ORIG or nl.CTA_TUPLE_REPLY
	protocol uint8
	src, dst netip.AddrPort
}

// ask sends a query and has the answer read.
func (c *Conntrack) ask(q tupleQuery, read func(message) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	if _, err := unix.Write(c.fd, lookup(c.buf[:0], c.seq, q)); err != nil {
		return err
	}
	for {
		n, err := unix.Read(c.fd, c.buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		m := message(c.buf[:n])
		if m.seq() != c.seq {
			continue // the late answer to a look-up that was given up
		}
		return read(m)
	}
}

// lookup appends the request for one connection.
func lookup(b []byte, seq uint32, q tupleQuery) []byte {
	family, srcType, dstType := byte(unix.AF_INET), uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
	if q.src.Addr().Is6() {
		family, srcType, dstType = unix.AF_INET6, nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	b = append(b, make([]byte, unix.NLMSG_HDRLEN)...)
	b = append(b, family, 0, 0, 0) // nfgenmsg: family, version, resource
	b = nest(b, q.kind, func(b []byte) []byte {
		b = nest(b, nl.CTA_TUPLE_IP, func(b []byte) []byte {
			b = attribute(b, srcType, q.src.Addr().AsSlice())
			return attribute(b, dstType, q.dst.Addr().AsSlice())
		})
		return nest(b, nl.CTA_TUPLE_PROTO, func(b []byte) []byte {
			b = attribute(b, nl.CTA_PROTO_NUM, []byte{q.protocol})
			b = attribute(b, nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, q.src.Port()))
			return attribute(b, nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, q.dst.Port()))
		})
	})
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	return b
}

func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func nest(b []byte, kind uint16, fill func([]byte) []byte) []byte {
	start := len(b)
	b = fill(attribute(b, kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// message is one answer of the kernel.
type message []byte

func (m message) seq() uint32 {
	if len(m) < unix.NLMSG_HDRLEN {
		return 0
	}
	return binary.NativeEndian.Uint32(m[8:])
}

// entry returns the attributes of an answer, nil if there is no such entry.
func (m message) entry() ([]byte, error) {
	body := m[unix.NLMSG_HDRLEN:]
	if binary.NativeEndian.Uint16(m[4:]) == unix.NLMSG_ERROR {
		if len(body) < 4 {
			return nil, errors.New("short answer")
		}
		errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		if errno == unix.ENOENT {
			return nil, nil
		}
		return nil, errno
	}
	if len(body) < nl.SizeofNfgenmsg {
		return nil, errors.New("short answer")
	}
	return body[nl.SizeofNfgenmsg:], nil
}

// live tells whether the answer is an entry of a TCP connection that has not ended.
func (m message) live() (bool, error) {
	attributes, err := m.entry()
	if err != nil || attributes == nil {
		return false, err
	}
	state, ok := find(attributes, nl.CTA_PROTOINFO, nl.CTA_PROTOINFO_TCP, nl.CTA_PROTOINFO_TCP_STATE)
	// An entry without a state is one of which nothing is known: better not touched.
	return !ok || len(state) == 0 || state[0] != nl.TCP_CONNTRACK_TIME_WAIT && state[0] != nl.TCP_CONNTRACK_CLOSE, nil
}

// find follows a path of nested attributes.
func find(b []byte, path ...uint16) ([]byte, bool) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == path[0] {
			value := b[unix.SizeofNlAttr:size]
			if len(path) == 1 {
				return value, true
			}
			return find(value, path[1:]...)
		}
		b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return nil, false
}
