package traffic

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// HalfCloseRequest asks for two connections to a tool at Target, one that the client ends first and one that the server
// ends first. The side that has not ended is silent for Pause and only then sends.
type HalfCloseRequest struct {
	Target string        `json:"target"`
	Pause  time.Duration `json:"pause,omitempty"`
}

// HalfCloseReport says for each direction what went wrong; both are empty if the data of the second half came through whole.
type HalfCloseReport struct {
	ClientFirst string `json:"clientFirst,omitempty"`
	ServerFirst string `json:"serverFirst,omitempty"`
}

// HalfClose runs both connections at the same time.
func HalfClose(ctx context.Context, req HalfCloseRequest) (HalfCloseReport, error) {
	var report HalfCloseReport
	var wg sync.WaitGroup
	wg.Go(func() { report.ClientFirst = text(clientEndsFirst(ctx, req)) })
	wg.Go(func() { report.ServerFirst = text(serverEndsFirst(ctx, req)) })
	wg.Wait()
	return report, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// clientEndsFirst: everything the server says comes after the client's end.
func clientEndsFirst(ctx context.Context, req HalfCloseRequest) error {
	conn, err := give(ctx, req.Target, Order{Op: OpSink, Pause: req.Pause}, DefaultTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := payload("half close", 1000)
	if _, err := conn.Write(sent); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(req.Pause + DefaultTimeout))
	seen, err := readSeen(conn)
	if err != nil {
		return err
	}
	return seen.want(sent)
}

// serverEndsFirst: everything the client says comes after the server's end.
func serverEndsFirst(ctx context.Context, req HalfCloseRequest) error {
	id := rand.Text()
	const size = 1000
	conn, err := give(ctx, req.Target, Order{Op: OpSource, ID: id, Bytes: size, Seed: 7}, DefaultTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(DefaultTimeout))
	if n, err := io.Copy(io.Discard, conn); err != nil {
		return fmt.Errorf("read to the server's end: %w", err)
	} else if n != size {
		return fmt.Errorf("%w: %d bytes before the server's end, want %d", errWrong, n, size)
	}
	if !pause(ctx, req.Pause) {
		return ctx.Err()
	}
	sent := payload("half close", 1000)
	if _, err := conn.Write(sent); err != nil {
		return fmt.Errorf("send after the server's end: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	seen, err := askAbout(ctx, req.Target, id)
	if err != nil {
		return err
	}
	return seen.want(sent)
}

// want compares with what was sent.
func (s Seen) want(sent []byte) error {
	sum := sha256.Sum256(sent)
	switch {
	case s.End != "":
		return fmt.Errorf("the server saw the connection fail: %s", s.Error)
	case s.Bytes != int64(len(sent)):
		return fmt.Errorf("%w: the server got %d bytes of %d", errWrong, s.Bytes, len(sent))
	case s.SHA256 != hex.EncodeToString(sum[:]):
		return fmt.Errorf("%w: the server got other bytes", errWrong)
	}
	return nil
}

// ResetRequest asks for two connections to a tool at Target, one that each side resets in the middle.
type ResetRequest struct {
	Target string `json:"target"`
}

// ResetReport says how the other side saw each connection end; KindReset is right, KindEOF means that a reset arrived as an
// orderly end.
type ResetReport struct {
	ByClient Kind `json:"byClient"`
	ByServer Kind `json:"byServer"`
}

// Reset runs both connections.
func Reset(ctx context.Context, req ResetRequest) (ResetReport, error) {
	var report ResetReport
	var err error
	if report.ByClient, err = resetByClient(ctx, req.Target); err != nil {
		return report, fmt.Errorf("reset by the client: %w", err)
	}
	if report.ByServer, err = resetByServer(ctx, req.Target); err != nil {
		return report, fmt.Errorf("reset by the server: %w", err)
	}
	return report, nil
}

func resetByClient(ctx context.Context, target string) (Kind, error) {
	id := rand.Text()
	conn, err := give(ctx, target, Order{Op: OpWatch, ID: id}, DefaultTimeout)
	if err != nil {
		return "", err
	}
	_ = conn.SetDeadline(time.Now().Add(DefaultTimeout))
	if _, err := io.ReadAtLeast(conn, make([]byte, 64), 1); err != nil { // the server is there
		conn.Close()
		return "", err
	}
	_ = conn.SetLinger(0)
	conn.Close() // sends RST
	seen, err := askAbout(ctx, target, id)
	if err != nil {
		return "", err
	}
	if seen.End == "" {
		return KindEOF, nil
	}
	return seen.End, nil
}

func resetByServer(ctx context.Context, target string) (Kind, error) {
	conn, err := give(ctx, target, Order{Op: OpReset}, DefaultTimeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(DefaultTimeout))
	if _, err := io.ReadAtLeast(conn, make([]byte, 64), 1); err != nil {
		return "", err
	}
	if _, err := conn.Write(payload("reset me", 0)); err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, conn)
	if err == nil {
		return KindEOF, nil
	}
	return KindOf(err), nil
}

// TransferRequest asks for Bytes bytes up to a tool at Target and as many down, each with a checksum.
type TransferRequest struct {
	Target string `json:"target"`
	Bytes  int64  `json:"bytes"`
	// Timeout bounds each direction; zero is five minutes.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// TransferReport has the time of each direction. It exists only if both checksums were right.
type TransferReport struct {
	Up   time.Duration `json:"up"`
	Down time.Duration `json:"down"`
}

// Transfer runs one direction after the other.
func Transfer(ctx context.Context, req TransferRequest) (TransferReport, error) {
	var report TransferReport
	timeout := orDefault(req.Timeout, 5*time.Minute)
	start := time.Now()
	if err := transferUp(ctx, req, timeout); err != nil {
		return report, fmt.Errorf("transfer up: %w", err)
	}
	report.Up = time.Since(start)
	start = time.Now()
	if err := transferDown(ctx, req, timeout); err != nil {
		return report, fmt.Errorf("transfer down: %w", err)
	}
	report.Down = time.Since(start)
	return report, nil
}

func transferUp(ctx context.Context, req TransferRequest, timeout time.Duration) error {
	conn, err := give(ctx, req.Target, Order{Op: OpSink}, DefaultTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	hash := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(conn, hash), Stream(1, req.Bytes), make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	seen, err := readSeen(conn)
	switch {
	case err != nil:
		return err
	case seen.End != "":
		return fmt.Errorf("the server saw the connection fail after %d bytes: %s", seen.Bytes, seen.Error)
	case seen.Bytes != req.Bytes, seen.SHA256 != hex.EncodeToString(hash.Sum(nil)):
		return fmt.Errorf("%w: sent %d bytes, the server got %d, checksum %s", errWrong, req.Bytes, seen.Bytes, seen.SHA256)
	}
	return nil
}

func transferDown(ctx context.Context, req TransferRequest, timeout time.Duration) error {
	const seed = 2
	conn, err := give(ctx, req.Target, Order{Op: OpSource, ID: rand.Text(), Bytes: req.Bytes, Seed: seed}, DefaultTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	got := sha256.New()
	n, err := io.CopyBuffer(got, onlyReader{conn}, make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	want := sha256.New()
	if _, err := io.Copy(want, Stream(seed, req.Bytes)); err != nil {
		return err
	}
	if n != req.Bytes || hex.EncodeToString(got.Sum(nil)) != hex.EncodeToString(want.Sum(nil)) {
		return fmt.Errorf("%w: got %d bytes of %d, or other ones", errWrong, n, req.Bytes)
	}
	return nil
}

// onlyReader hides WriteTo, so that io.CopyBuffer uses the buffer it is given.
type onlyReader struct{ io.Reader }

// BurstRequest asks for Connections connections at once to echo servers, each of them short.
type BurstRequest struct {
	Targets     []string      `json:"targets"`
	Connections int           `json:"connections"`
	Timeout     time.Duration `json:"timeout,omitempty"` // of each; zero is 30 s
}

// BurstReport is what became of them.
type BurstReport struct {
	OK       int           `json:"ok"`
	Failed   map[Kind]int  `json:"failed,omitempty"`
	Failures []Failure     `json:"failures,omitempty"` // the first maxFailures
	Took     time.Duration `json:"took"`
}

// Burst opens all connections, and only when every one is open or has failed lets them exchange their line: they are open
// at the same time.
func Burst(ctx context.Context, req BurstRequest) (BurstReport, error) {
	if len(req.Targets) == 0 {
		return BurstReport{}, errors.New("burst: no targets")
	}
	timeout := orDefault(req.Timeout, 30*time.Second)
	report := BurstReport{Failed: map[Kind]int{}}
	start := time.Now()
	var mu sync.Mutex
	var opening, all sync.WaitGroup
	opening.Add(req.Connections)
	for i := range req.Connections {
		target := req.Targets[i%len(req.Targets)]
		all.Go(func() {
			begun := time.Now()
			conn, err := dial(ctx, target, timeout)
			opening.Done()
			opening.Wait()
			if err == nil {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(timeout))
				err = echoOnce(conn, payload(fmt.Sprint("burst ", i), 64))
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				report.OK++
				return
			}
			f := failure(target, nil, err, begun)
			report.Failed[f.Kind]++
			if len(report.Failures) < maxFailures {
				report.Failures = append(report.Failures, f)
			}
		})
	}
	all.Wait()
	report.Took = time.Since(start)
	return report, nil
}
