package inpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// Limits of the wire.
const (
	// maxPacket bounds one message, in bytes. Requests hold three Kubernetes names, a uid and what a
	// resolv.conf says.
	maxPacket = 4096
	// maxDescriptors is how many descriptors of one packet are taken off the socket, to be closed if there are too many.
	maxDescriptors = 16
	// answerTimeout bounds the writing of one answer; the agent waits for it.
	answerTimeout = 5 * time.Second
)

// errProtocol is wrapped by errors for a peer that breaks the protocol. The connection is then closed.
var errProtocol = errors.New("ZDS protocol broken")

// request is one message of the agent. Of its descriptors, exactly one comes with an add.
type request struct {
	*zds.WorkloadRequest
	fds []int
}

// close closes the descriptors that nobody took over.
func (r *request) close() {
	for _, fd := range r.fds {
		unix.Close(fd)
	}
	r.fds = nil
}

// takeFD hands over the descriptor of an add.
func (r *request) takeFD() int {
	fd := r.fds[0]
	r.fds = r.fds[1:]
	return fd
}

// wire is one connection to the agent.
type wire struct {
	conn *net.UnixConn
}

// dialZDS connects and says hello, with the features that are asked for. The end of the context closes the connection until
// stop is called.
func dialZDS(ctx context.Context, socket string, features ...zds.Feature) (w *wire, stop func() bool, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return nil, nil, err
	}
	w = &wire{conn: c.(*net.UnixConn)}
	stop = context.AfterFunc(ctx, func() { w.conn.Close() })
	if err := w.send(&zds.ZdsHello{Version: zds.Version_V1, Features: features}); err != nil {
		stop()
		w.conn.Close()
		return nil, nil, fmt.Errorf("say hello: %w", err)
	}
	return w, stop, nil
}

func (w *wire) send(m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	_, err = w.conn.Write(b)
	return err
}

// ack answers a request; an empty text is success.
func (w *wire) ack(text string) error {
	return w.send(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: &zds.Ack{Error: text}}})
}

// receive returns the next request, whose descriptors the caller must close, or an error: io.EOF at the agent's end of the
// connection, one that wraps errProtocol for what is not a request.
func (w *wire) receive() (*request, error) {
	packet := make([]byte, maxPacket)
	oob := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(packet, oob)
	if err != nil {
		return nil, err
	}
	r := &request{}
	if r.fds, err = handover.Descriptors(oob[:oobn]); err != nil {
		r.close()
		return nil, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if n == 0 && oobn == 0 {
		return nil, io.EOF
	}
	if err := r.decode(packet[:n], flags); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *request) decode(packet []byte, flags int) error {
	if flags&unix.MSG_TRUNC != 0 {
		return fmt.Errorf("%w: message of more than %d bytes", errProtocol, maxPacket)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("%w: message with more than %d descriptors", errProtocol, maxDescriptors)
	}
	r.WorkloadRequest = &zds.WorkloadRequest{}
	if err := proto.Unmarshal(packet, r.WorkloadRequest); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	want := 0
	switch p := r.Payload.(type) {
	case *zds.WorkloadRequest_Add:
		want = 1
		if p.Add.GetUid() == "" {
			return fmt.Errorf("%w: add without a uid", errProtocol)
		}
		if i := p.Add.GetWorkloadInfo(); i.GetName() == "" || i.GetNamespace() == "" || i.GetServiceAccount() == "" {
			return fmt.Errorf("%w: add of %s without name, namespace and service account", errProtocol, p.Add.GetUid())
		}
	case *zds.WorkloadRequest_Keep:
		if p.Keep.GetUid() == "" {
			return fmt.Errorf("%w: keep without a uid", errProtocol)
		}
	case *zds.WorkloadRequest_Del:
		if p.Del.GetUid() == "" {
			return fmt.Errorf("%w: delete without a uid", errProtocol)
		}
	}
	if len(r.fds) != want {
		return fmt.Errorf("%w: %T with %d descriptors, want %d", errProtocol, r.Payload, len(r.fds), want)
	}
	return nil
}
