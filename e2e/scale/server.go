package scale

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"
)

// startLimit bounds the start of one part, with a full etcd on a busy machine.
const startLimit = 5 * time.Minute

// certName is a name in the certificate that the API server makes for itself.
const certName = "kubernetes.default.svc"

// server is etcd and an API server, alone: no controller and no node looks at what is put into it. Both listen on loopback.
type server struct {
	etcd, api  *process
	etcdURL    string
	config     *rest.Config
	kubeconfig string
}

// startServer starts both on an etcd folder. Everything else goes into dir, which is there and the caller's. programs is the folder
// of the cluster's programs.
func startServer(ctx context.Context, programs, etcdDir, dir string) (_ *server, err error) {
	s := &server{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	var addrs [3]string
	for i := range addrs {
		if addrs[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	s.etcdURL = "http://" + addrs[0]
	peer := "http://" + addrs[1]
	s.etcd, err = start("etcd", filepath.Join(dir, "etcd.log"), nil, nil, nil, filepath.Join(programs, "etcd"),
		"--name=scale", "--data-dir="+etcdDir, "--listen-client-urls="+s.etcdURL, "--advertise-client-urls="+s.etcdURL,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=scale="+peer,
		"--quota-backend-bytes=8589934592",
		"--unsafe-no-fsync", // the disk is not what is measured
		"--log-level=warn")
	if err != nil {
		return nil, err
	}
	if err := s.etcd.await(ctx, "is healthy", startLimit, func(ctx context.Context) error { return get(ctx, http.DefaultClient, s.etcdURL+"/health") }); err != nil {
		return nil, err
	}
	return s, s.startAPI(ctx, filepath.Join(programs, "kube-apiserver"), addrs[2], dir)
}

func (s *server) startAPI(ctx context.Context, program, addr, dir string) error {
	key, token := filepath.Join(dir, "token.key"), make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	secret := hex.EncodeToString(token)
	if err := writeKey(key); err != nil {
		return err
	}
	tokens, certs := filepath.Join(dir, "tokens.csv"), filepath.Join(dir, "certs")
	if err := os.WriteFile(tokens, []byte(secret+`,scale,scale,"system:masters"`+"\n"), 0o600); err != nil {
		return err
	}
	where, err := url.Parse("https://" + addr)
	if err != nil {
		return err
	}
	s.api, err = start("kube-apiserver", filepath.Join(dir, "kube-apiserver.log"), nil, nil, nil, program,
		"--etcd-servers="+s.etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+where.Port(),
		"--cert-dir="+certs, "--token-auth-file="+tokens, "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
		"--service-cluster-ip-range="+serviceRange.String(),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--disable-admission-plugins=ServiceAccount") // nobody is there who makes the default accounts
	if err != nil {
		return err
	}
	cert := filepath.Join(certs, "apiserver.crt") // it makes one for itself
	s.config = &rest.Config{
		Host: where.String(), BearerToken: secret, TLSClientConfig: rest.TLSClientConfig{CAFile: cert, ServerName: certName},
		QPS: -1, Timeout: time.Minute,
		ContentConfig: rest.ContentConfig{
			ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
	}
	err = s.api.await(ctx, "is ready", startLimit, func(ctx context.Context) error {
		client, err := rest.HTTPClientFor(s.config) // anew: the certificate may not have been there
		if err != nil {
			return err
		}
		defer client.CloseIdleConnections()
		return get(ctx, client, where.String()+"/readyz")
	})
	if err != nil {
		return err
	}
	s.kubeconfig = filepath.Join(dir, "kubeconfig")
	config := clientapi.NewConfig()
	config.Clusters["scale"] = &clientapi.Cluster{Server: where.String(), CertificateAuthority: cert, TLSServerName: certName}
	config.AuthInfos["scale"] = &clientapi.AuthInfo{Token: secret}
	config.Contexts["scale"] = &clientapi.Context{Cluster: "scale", AuthInfo: "scale"}
	config.CurrentContext = "scale"
	return clientcmd.WriteToFile(*config, s.kubeconfig)
}

// stop ends both; what was written is in the etcd folder then.
func (s *server) stop() error {
	var errs []error
	for _, p := range []*process{s.api, s.etcd} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}

// writeKey makes the key that the API server wants for tokens of service accounts.
func writeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func get(ctx context.Context, client *http.Client, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // only to explain
		return fmt.Errorf("%s says %s: %s", address, resp.Status, text)
	}
	return nil
}

// count returns how many objects the API server keeps below a prefix of etcd's keys, such as "/registry/pods/".
func (s *server) count(ctx context.Context, prefix string) (int, error) {
	end := []byte(prefix)
	end[len(end)-1]++
	var out struct {
		Count int64 `json:"count,string"`
	}
	err := s.call(ctx, "/v3/kv/range", map[string]any{
		"key": base64.StdEncoding.EncodeToString([]byte(prefix)), "range_end": base64.StdEncoding.EncodeToString(end), "count_only": true,
	}, &out)
	return int(out.Count), err
}

// compact makes etcd forget all old versions, so that a copy of its folder is small.
func (s *server) compact(ctx context.Context) error {
	var at struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := s.call(ctx, "/v3/kv/range", map[string]any{"key": base64.StdEncoding.EncodeToString([]byte("/"))}, &at); err != nil {
		return err
	}
	if err := s.call(ctx, "/v3/kv/compaction", map[string]any{"revision": at.Header.Revision, "physical": true}, nil); err != nil {
		return err
	}
	return s.call(ctx, "/v3/maintenance/defragment", map[string]any{}, nil)
}

// call calls etcd by its JSON gateway.
func (s *server) call(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.etcdURL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("etcd %s: %w", path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return fmt.Errorf("etcd %s: %w: %s", path, err, text[:min(len(text), 500)])
	}
	return nil
}
