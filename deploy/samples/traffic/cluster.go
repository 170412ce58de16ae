package traffic

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// ResolveRequest asks for the addresses of names by the pod's own resolver.
type ResolveRequest struct {
	Names []string `json:"names"`
}

// ResolveReport has the addresses of each name, sorted, and the errors of those that have none.
type ResolveReport struct {
	Addresses map[string][]string `json:"addresses"`
	Errors    map[string]string   `json:"errors,omitempty"`
}

// Resolve looks the names up, one after the other.
func Resolve(ctx context.Context, req ResolveRequest) (ResolveReport, error) {
	report := ResolveReport{Addresses: map[string][]string{}, Errors: map[string]string{}}
	for _, name := range req.Names {
		addresses, err := lookup(ctx, name)
		if err != nil {
			report.Errors[name] = err.Error()
			continue
		}
		slices.Sort(addresses)
		report.Addresses[name] = addresses
	}
	return report, nil
}

func lookup(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	return net.DefaultResolver.LookupHost(ctx, name)
}

// APIServerRequest asks the API server for Path, "/version" if empty, with the pod's own credentials.
type APIServerRequest struct {
	Path string `json:"path,omitempty"`
}

// APIServerReport is its answer.
type APIServerReport struct {
	Status int    `json:"status"`
	Body   string `json:"body"` // at most 64 KiB
}

// serviceAccountDir is where Kubernetes mounts a pod's credentials.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// APIServer asks by the name kubernetes.default.svc, verifying the server's certificate.
func APIServer(ctx context.Context, req APIServerRequest) (APIServerReport, error) {
	ca, err := os.ReadFile(serviceAccountDir + "/ca.crt")
	if err != nil {
		return APIServerReport{}, fmt.Errorf("api server: read its root certificate: %w", err)
	}
	token, err := os.ReadFile(serviceAccountDir + "/token")
	if err != nil {
		return APIServerReport{}, fmt.Errorf("api server: read the pod's token: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return APIServerReport{}, errors.New("api server: its root certificate is not one")
	}
	path := req.Path
	if path == "" {
		path = "/version"
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://kubernetes.default.svc"+path, nil)
	if err != nil {
		return APIServerReport{}, fmt.Errorf("api server: %w", err)
	}
	get.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(get)
	if err != nil {
		return APIServerReport{}, fmt.Errorf("api server: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return APIServerReport{}, fmt.Errorf("api server: read the answer: %w", err)
	}
	return APIServerReport{Status: resp.StatusCode, Body: string(body)}, nil
}

// Drip sends a line to an echo server, on a new connection each time, every period from the moment the pod starts until ctx
// ends. Failures are expected (a server that is not there yet) and only counted.
func Drip(ctx context.Context, target string, every time.Duration, count func(ok bool)) {
	for i := 0; pause(ctx, every); i++ {
		attempt := try(ctx, Attempt{Target: target, Protocol: ProtocolEcho}, 2*time.Second, fmt.Sprint("drip ", i))
		count(attempt.Kind == "")
	}
}
