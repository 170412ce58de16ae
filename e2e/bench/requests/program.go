package requests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startTime is how long a program may take until it serves.
const startTime = 20 * time.Second

// program is one that runs until stop.
type program struct {
	cmd  *exec.Cmd
	addr string // where it serves
}

func (p *program) pid() []int { return []int{p.cmd.Process.Pid} }

func (p *program) stop() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	_ = p.cmd.Wait()         // killed
}

// cores are which processors programs run on: proxies have one to themselves, so that it is known what one of them brings.
type cores struct{ proxy, rest unix.CPUSet }

func newCores() (*cores, error) {
	c := &cores{}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, fmt.Errorf("read the processors that may be used: %w", err)
	}
	if all.Count() < 2 {
		return nil, errors.New("two processors are needed: one for the proxy, one for its clients and backend")
	}
	c.rest = all
	for i := len(all)*64 - 1; i >= 0; i-- {
		if all.IsSet(i) {
			c.proxy.Set(i)
			c.rest.Clear(i)
			break
		}
	}
	return c, nil
}

// start starts cmd on processors. It ends with this process.
func start(cmd *exec.Cmd, on unix.CPUSet) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until the goroutine ends, and the thread with it: children have its processors
		if err := unix.SchedSetaffinity(0, &on); err != nil {
			started <- fmt.Errorf("choose processors: %w", err)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// startSelf starts this program again as a server.
func (r *run) startSelf(on unix.CPUSet, args ...string) (*program, error) {
	cmd := exec.Command(r.Self, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(cmd, on); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	p := &program{cmd: cmd}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("start %s: it ended before it served: %w", args[0], err)
	}
	p.addr = strings.TrimSpace(line)
	return p, nil
}

// startEnvoy starts Envoy with one worker.
func (r *run) startEnvoy(ctx context.Context, dir, backend string) (*program, error) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	host, backendPort, err := net.SplitHostPort(backend)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, envoyYAML, port, host, backendPort), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(r.Envoy, "-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "error")
	cmd.Stderr = os.Stderr
	if err := start(cmd, r.cores.proxy); err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	p := &program{cmd: cmd, addr: addr}
	if err := awaitServer(ctx, addr); err != nil {
		p.stop()
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	return p, nil
}

// awaitServer waits until somebody listens.
func awaitServer(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	return awaitOn(ctx, func() error {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		return nc.Close()
	})
}

// awaitOn waits until try has no error; that of the last try is returned when ctx ends.
func awaitOn(ctx context.Context, try func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
