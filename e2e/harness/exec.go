package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
)

// Streams are a command's standard streams; nil ones are not connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs a command in a pod's first container and returns when it has ended. It goes by the kubelet, not through the
// pod's network.
func (c *Cluster) Exec(ctx context.Context, pod Pod, streams Streams, command ...string) error {
	req := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Command: command, Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", req.URL().String())
	if err != nil {
		return fmt.Errorf("exec in %s: %w", pod, err)
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr})
	if err != nil {
		return fmt.Errorf("exec in %s: %w", pod, err)
	}
	return nil
}

// trafficProgram is where the sample image has its test tool.
const trafficProgram = "/usr/local/bin/traffic"

// Do runs a verb of package traffic in a pod and returns its report.
func Do[Report any](ctx context.Context, c *Cluster, pod Pod, verb string, request any) (Report, error) {
	var report Report
	raw, err := json.Marshal(request)
	if err != nil {
		return report, fmt.Errorf("%s from %s: %w", verb, pod, err)
	}
	var stdout, stderr bytes.Buffer
	if err := c.Exec(ctx, pod, Streams{Stdout: &stdout, Stderr: &stderr}, trafficProgram, verb, string(raw)); err != nil {
		return report, fmt.Errorf("%s: %w: %s", verb, err, strings.TrimSpace(stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		return report, fmt.Errorf("%s from %s: read the report %q: %w", verb, pod, stdout.String(), err)
	}
	return report, nil
}

// Dial makes connections from a pod.
func (c *Cluster) Dial(ctx context.Context, from Pod, request traffic.DialRequest) ([]traffic.Outcome, error) {
	report, err := Do[traffic.DialReport](ctx, c, from, traffic.VerbDial, request)
	if err != nil {
		return nil, err
	}
	if len(report.Outcomes) != len(request.Attempts) {
		return nil, fmt.Errorf("dial from %s: %d outcomes for %d attempts", from, len(report.Outcomes), len(request.Attempts))
	}
	return report.Outcomes, nil
}

// Load is a load that runs in a pod.
type Load struct {
	From Pod

	stdin  *io.PipeWriter
	cancel context.CancelFunc
	done   chan struct{} // closed when the command has ended
	err    error         // of the command; read after done
	stderr bytes.Buffer  // read after done
	lines  *lineWriter
}

// lineWriter hands out complete lines.
type lineWriter struct {
	mu      sync.Mutex // guards partial
	partial []byte
	lines   chan []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial = append(w.partial, p...)
	for {
		line, rest, ok := bytes.Cut(w.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		select {
		case w.lines <- bytes.Clone(line):
		default:
			return 0, errors.New("more lines than expected")
		}
		w.partial = rest
	}
}

// StartLoad starts a load in a pod and returns once every connection to be held is open. Stop ends it; so does ctx.
func (c *Cluster) StartLoad(ctx context.Context, from Pod, request traffic.LoadRequest) (*Load, error) {
	return c.startLoad(ctx, from, traffic.VerbLoad, request)
}

// StartHTTPLoad is StartLoad for requests of HTTP.
func (c *Cluster) StartHTTPLoad(ctx context.Context, from Pod, request traffic.HTTPLoadRequest) (*Load, error) {
	return c.startLoad(ctx, from, traffic.VerbHTTPLoad, request)
}

func (c *Cluster) startLoad(ctx context.Context, from Pod, verb string, request any) (*Load, error) {
	raw, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("start load from %s: %w", from, err)
	}
	stdin, write := io.Pipe()
	run, cancel := context.WithCancel(ctx)
	l := &Load{From: from, stdin: write, cancel: cancel, done: make(chan struct{}), lines: &lineWriter{lines: make(chan []byte, 4)}}
	go func() {
		defer close(l.done)
		l.err = c.Exec(run, from, Streams{Stdin: stdin, Stdout: l.lines, Stderr: &l.stderr}, trafficProgram, verb, string(raw))
		write.Close()
	}()
	var ready traffic.Ready
	if err := l.next(time.Minute, &ready); err != nil {
		cancel()
		<-l.done
		return nil, fmt.Errorf("start load from %s: %w", from, err)
	}
	return l, nil
}

// next decodes the load's next line.
func (l *Load) next(within time.Duration, v any) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case line := <-l.lines.lines:
		return json.Unmarshal(line, v)
	case <-l.done:
		select {
		case line := <-l.lines.lines:
			return json.Unmarshal(line, v)
		default:
		}
		return fmt.Errorf("it ended: %w: %s", errors.Join(l.err, errEnded), strings.TrimSpace(l.stderr.String()))
	case <-timer.C:
		return fmt.Errorf("nothing from it within %s", within)
	}
}

var errEnded = errors.New("no report")

// Stop ends the load, waits for what is under way, and returns the report. It must be called once.
func (l *Load) Stop() (traffic.LoadReport, error) {
	defer func() {
		// Once the report is there the command ends by itself.
		timer := time.AfterFunc(5*time.Second, l.cancel)
		<-l.done
		timer.Stop()
		l.cancel()
	}()
	var report traffic.LoadReport
	if _, err := l.stdin.Write([]byte("stop\n")); err != nil {
		return report, fmt.Errorf("stop load from %s: %w: %s", l.From, errors.Join(err, l.err), l.stderr.String())
	}
	if err := l.next(time.Minute, &report); err != nil {
		return report, fmt.Errorf("stop load from %s: %w", l.From, err)
	}
	return report, nil
}
