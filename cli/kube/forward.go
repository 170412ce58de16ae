package kube

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// maxBody bounds what is read of an answer, in bytes; a node proxy's dump of a large mesh is some tens of MB.
const maxBody = 1 << 30

// StatusError says that the other side answered with something else than 200.
type StatusError struct {
	Code int
	Body string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("HTTP status %d: %s", e.Code, strings.TrimSpace(e.Body))
}

// Get is Do with the method GET.
func (c *Cluster) Get(ctx context.Context, namespace, pod string, port int, path string) ([]byte, error) {
	return c.Do(ctx, http.MethodGet, namespace, pod, port, path)
}

// Do asks a port of a pod by HTTP, loopback included, and returns the body. It goes through the kubelet, as
// `kubectl port-forward` does, so that the API server needs no way into the pod network. A *StatusError is an answer too.
func (c *Cluster) Do(ctx context.Context, method, namespace, pod string, port int, path string) ([]byte, error) {
	conn, err := c.forward(namespace, pod)
	if err != nil {
		return nil, fmt.Errorf("reach pod %s/%s: %w", namespace, pod, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	body, err := send(ctx, conn, method, port, path)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s http://%s/%s:%d%s: %w", strings.ToLower(method), namespace, pod, port, path, err)
	}
	return body, nil
}

// forward opens a port-forward connection to a pod: over a WebSocket, or over SPDY where something between speaks only that.
func (c *Cluster) forward(namespace, pod string) (httpstream.Connection, error) {
	url := c.Kubernetes.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return nil, err
	}
	secondary := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	primary, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, c.Config)
	if err != nil {
		return nil, err
	}
	conn, _, err := portforward.NewFallbackDialerForStreaming(primary, secondary, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}).Dial(portforward.PortForwardProtocolV1Name)
	return conn, err
}

// send sends one request over a stream of its own. The error stream beside it tells what went wrong in the node.
func send(ctx context.Context, conn httpstream.Connection, method string, port int, path string) ([]byte, error) {
	header := http.Header{}
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	header.Set(corev1.PortHeader, strconv.Itoa(port))
	header.Set(corev1.PortForwardRequestIDHeader, "0")
	errs, err := conn.CreateStream(header)
	if err != nil {
		return nil, err
	}
	errs.Close() // nothing is sent on it
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(header)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	body, err := exchange(data, req)
	var status *StatusError
	if err != nil && !errors.As(err, &status) {
		// The connection ends after this request, so the error stream is at its end or about to be.
		data.Close()
		if told, readErr := io.ReadAll(io.LimitReader(errs, 4096)); readErr == nil && len(told) > 0 {
			return nil, errors.New(strings.TrimSpace(string(told)))
		}
	}
	return body, err
}

func exchange(stream io.ReadWriter, req *http.Request) ([]byte, error) {
	if err := req.Write(stream); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(stream), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &StatusError{Code: resp.StatusCode, Body: string(body)}
	}
	return body, nil
}
