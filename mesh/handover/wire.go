package handover

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Versions of the protocol. Messages are JSON objects, one to a packet, in which unknown fields are ignored; so a version
// is only for what an older release would misunderstand. Each side tells the newest that it speaks and the oldest, and both
// use the newest that they share.
const (
	newest = 1
	oldest = 1
)

// Limits of the wire.
const (
	// MaxDescriptors is how many descriptors one packet may carry (the kernel's SCM_MAX_FD).
	MaxDescriptors = 253
	// maxPacket bounds a message in bytes: MaxDescriptors names of under 100 bytes each.
	maxPacket = 64 << 10
	// DefaultTimeout bounds one exchange of messages.
	DefaultTimeout = 2 * time.Second
)

// Operations.
const (
	opHello   = "hello"
	opLend    = "lend"
	opTaken   = "taken"
	opDeposit = "deposit"
)

// request is what a client asks for.
type request struct {
	Op string `json:"op"`
	// Newest, Oldest and Name introduce the client (hello).
	Newest int    `json:"newest,omitempty"`
	Oldest int    `json:"oldest,omitempty"`
	Name   string `json:"name,omitempty"`
	// NetNS is what all others are about.
	NetNS NetNS `json:"netns,omitzero"`
	// Sockets names the descriptors that come with a deposit, in order.
	Sockets []Name `json:"sockets,omitempty"`
}

// response answers a request. A lend may have several.
type response struct {
	// Error says that nothing was done, and why.
	Error  string `json:"error,omitempty"`
	Newest int    `json:"newest,omitempty"`
	Oldest int    `json:"oldest,omitempty"`
	Name   string `json:"name,omitempty"`
	// Sockets names the descriptors that come with this packet, in order.
	Sockets []Name `json:"sockets,omitempty"`
	// More says that another packet with more of them follows.
	More bool `json:"more,omitempty"`
	// Orphaned says that whoever deposited the sockets is gone.
	Orphaned bool `json:"orphaned,omitempty"`
}

// agree returns the newest version that both sides speak.
func agree(peerNewest, peerOldest int) (int, error) {
	v := min(newest, peerNewest)
	if v < max(oldest, peerOldest) {
		return 0, fmt.Errorf("no common version: it speaks %d to %d, this side %d to %d", peerOldest, peerNewest, oldest, newest)
	}
	return v, nil
}

// errProtocol is wrapped by errors for a peer that breaks the protocol. The connection is then closed.
var errProtocol = errors.New("hand-over protocol broken")

// Listen makes the socket at path, in place of one that is there, so that a client always finds one of the two. Only root
// may connect. The listener does not remove it when closed: it may be its successor's by then.
func Listen(path string) (*net.UnixListener, error) {
	fresh := path + "." + rand.Text()[:8]
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: fresh, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		ln.Close()
		os.Remove(fresh)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

// proveRoot returns an error unless the other end was made by root, or by who runs this process.
func proveRoot(u *net.UnixConn) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("credentials of the peer: %w", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("the peer is user %d, and must be root", cred.Uid)
	}
	return nil
}

// send writes one packet. The descriptors stay the caller's.
func send(u *net.UnixConn, message any, sockets []Socket, timeout time.Duration) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(b) > maxPacket || len(sockets) > MaxDescriptors {
		return fmt.Errorf("message of %d bytes and %d descriptors is too large", len(b), len(sockets))
	}
	var oob []byte
	if len(sockets) > 0 {
		fds := make([]int, len(sockets))
		for i, s := range sockets {
			fds[i] = s.FD
		}
		oob = unix.UnixRights(fds...)
	}
	if err := u.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, _, err = u.WriteMsgUnix(b, oob, nil)
	return err
}

// receive reads one packet into message. The descriptors that came with it are the caller's unless there is an error.
func receive(u *net.UnixConn, message any) ([]int, error) {
	packet := make([]byte, maxPacket)
	oob := make([]byte, unix.CmsgSpace(4*MaxDescriptors))
	n, oobn, flags, _, err := u.ReadMsgUnix(packet, oob)
	if err != nil {
		return nil, err
	}
	fds, err := Descriptors(oob[:oobn])
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", errProtocol, err)
	case n == 0 && oobn == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = fmt.Errorf("%w: message of more than %d bytes or %d descriptors", errProtocol, maxPacket, MaxDescriptors)
	default:
		if err = json.Unmarshal(packet[:n], message); err != nil {
			err = fmt.Errorf("%w: %w", errProtocol, err)
		}
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

// Descriptors takes the file descriptors out of the control messages of a packet. Those that it returns are open, and the
// caller's to close, also if there is an error.
func Descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var all []int
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		all = append(all, fds...)
		if err != nil {
			return all, fmt.Errorf("descriptors: %w", err)
		}
	}
	return all, nil
}

// join pairs names with the descriptors that came with them, of which it takes over all, also on error.
func join(names []Name, fds []int) ([]Socket, error) {
	if len(names) != len(fds) {
		closeAll(fds)
		return nil, fmt.Errorf("%w: %d names for %d descriptors", errProtocol, len(names), len(fds))
	}
	sockets := make([]Socket, len(fds))
	for i, fd := range fds {
		sockets[i] = Socket{Name: names[i], FD: fd}
	}
	return sockets, nil
}

func namesOf(sockets []Socket) []Name {
	names := make([]Name, len(sockets))
	for i, s := range sockets {
		names[i] = s.Name
	}
	return names
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func closeSockets(sockets []Socket) {
	for _, s := range sockets {
		s.Close()
	}
}
