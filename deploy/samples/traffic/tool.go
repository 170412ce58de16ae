package traffic

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

// Order is the first line, as JSON, of a connection to PortTool. What follows depends on Op.
type Order struct {
	Op string `json:"op"`
	// ID names the connection, so that another one can ask what became of it (OpAsk).
	ID string `json:"id,omitempty"`
	// Bytes and Seed are the stream that OpSource sends.
	Bytes int64  `json:"bytes,omitempty"`
	Seed  uint64 `json:"seed,omitempty"`
	// Pause is how long the server waits at the point that Op says.
	Pause time.Duration `json:"pause,omitempty"`
}

// What an Order can ask for.
const (
	// OpWho: the server answers with a whoami.Who.
	OpWho = "who"
	// OpSink: the client sends and ends; then, after Pause, the server answers with a Seen. That is a half-close by the client.
	OpSink = "sink"
	// OpSource: the server sends Bytes bytes of Stream(Seed) and ends. It then waits for the client's end, and remembers
	// under ID what it saw until then. With a client that sends only afterwards that is a half-close by the server.
	OpSource = "source"
	// OpWatch: the server says one line, reads to the end, and remembers under ID how the connection ended.
	OpWatch = "watch"
	// OpReset: the server says one line and, when the client has said one, resets the connection.
	OpReset = "reset"
	// OpAsk: the server answers with the Seen of the connection ID, once it has ended.
	OpAsk = "ask"
)

// Seen is what a server saw of one connection.
type Seen struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	// End is empty for a clean end by the client, and else how the connection failed.
	End   Kind   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
	// Client is the address that the server saw.
	Client string `json:"client"`
}

// Stream is n bytes that seed determines.
func Stream(seed uint64, n int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// askLimit is how long OpAsk waits for a connection to end.
const askLimit = 15 * time.Second

// remembered bounds how many connections a tool remembers; the oldest go first.
const remembered = 1024

// tool serves PortTool. It may be used by several connections at once.
type tool struct {
	me whoami.Who

	mu    sync.Mutex // guards the fields below
	seen  map[string]Seen
	order []string
	more  chan struct{} // closed and replaced when seen grows
}

func newTool(me whoami.Who) *tool {
	return &tool{me: me, seen: map[string]Seen{}, more: make(chan struct{})}
}

// handle serves one connection and closes it.
func (t *tool) handle(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader := bufio.NewReaderSize(conn, 64<<10)
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return
	}
	var order Order
	if err := json.Unmarshal(line, &order); err != nil {
		fmt.Fprintf(conn, "not an order: %v\n", err)
		return
	}
	switch order.Op {
	case OpWho:
		who := t.me
		who.Client, who.Server = conn.RemoteAddr().String(), conn.LocalAddr().String()
		answer(conn, who)
	case OpSink:
		seen := t.drain(conn, reader)
		if pause(ctx, order.Pause) {
			answer(conn, seen)
		}
	case OpSource:
		t.source(conn, reader, order)
	case OpWatch:
		if _, err := fmt.Fprintf(conn, "%s watching\n", Marker); err == nil {
			t.remember(order.ID, t.drain(conn, reader))
		}
	case OpReset:
		if _, err := fmt.Fprintf(conn, "%s resetting\n", Marker); err != nil {
			return
		}
		if _, err := reader.ReadBytes('\n'); err == nil && pause(ctx, order.Pause) {
			_ = conn.SetLinger(0) // fails only on a closed connection
		}
	case OpAsk:
		if seen, ok := t.ask(ctx, order.ID); ok {
			answer(conn, seen)
		} else {
			fmt.Fprintf(conn, "no connection %q has ended\n", order.ID)
		}
	default:
		fmt.Fprintf(conn, "unknown order %q\n", order.Op)
	}
}

func (t *tool) source(conn *net.TCPConn, reader io.Reader, order Order) {
	if _, err := io.Copy(conn, Stream(order.Seed, order.Bytes)); err != nil {
		t.remember(order.ID, Seen{End: KindOf(err), Error: err.Error(), Client: conn.RemoteAddr().String()})
		return
	}
	if err := conn.CloseWrite(); err != nil {
		t.remember(order.ID, Seen{End: KindOf(err), Error: err.Error(), Client: conn.RemoteAddr().String()})
		return
	}
	t.remember(order.ID, t.drain(conn, reader))
}

// drain reads to the connection's end.
func (t *tool) drain(conn net.Conn, reader io.Reader) Seen {
	hash := sha256.New()
	n, err := io.Copy(hash, reader)
	seen := Seen{Bytes: n, SHA256: hex.EncodeToString(hash.Sum(nil)), Client: conn.RemoteAddr().String()}
	if err != nil {
		seen.End, seen.Error = KindOf(err), err.Error()
	}
	return seen
}

func (t *tool) remember(id string, seen Seen) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.seen[id]; !ok {
		t.order = append(t.order, id)
	}
	t.seen[id] = seen
	if len(t.order) > remembered {
		delete(t.seen, t.order[0])
		t.order = t.order[1:]
	}
	close(t.more)
	t.more = make(chan struct{})
}

func (t *tool) ask(ctx context.Context, id string) (Seen, bool) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	for {
		t.mu.Lock()
		seen, ok := t.seen[id]
		more := t.more
		t.mu.Unlock()
		if ok {
			return seen, true
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Seen{}, false
		}
	}
}

func answer(conn net.Conn, v any) {
	_ = json.NewEncoder(conn).Encode(v) // the client has gone: nobody to tell
}

// pause waits for d, and returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// order opens a connection to a tool and gives it an order.
func give(ctx context.Context, target string, order Order, timeout time.Duration) (*net.TCPConn, error) {
	conn, err := dial(ctx, target, timeout)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(order)
	if err == nil {
		_, err = conn.Write(append(line, '\n'))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("give order %s: %w", order.Op, err)
	}
	return conn, nil
}

// askAbout returns what the tool saw of the connection id.
func askAbout(ctx context.Context, target, id string) (Seen, error) {
	conn, err := give(ctx, target, Order{Op: OpAsk, ID: id}, DefaultTimeout)
	if err != nil {
		return Seen{}, err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(askLimit + DefaultTimeout))
	return readSeen(conn)
}

func readSeen(r io.Reader) (Seen, error) {
	raw, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return Seen{}, fmt.Errorf("read the server's account: %w", err)
	}
	if len(raw) == 0 {
		return Seen{}, fmt.Errorf("read the server's account: %w", io.EOF)
	}
	var seen Seen
	if err := json.Unmarshal(raw, &seen); err != nil {
		return Seen{}, fmt.Errorf("%w: the server's account is %q", errWrong, raw)
	}
	return seen, nil
}
