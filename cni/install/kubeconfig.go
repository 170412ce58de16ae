package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// tokenLifetime is what is asked for; the API server may give less.
	tokenLifetime = 30 * 24 * time.Hour
	// tokenCheck is how often the file and the age of its token are looked at.
	tokenCheck = 30 * time.Second
)

// Credential keeps a kubeconfig for the plugin on the host. Its token is the plugin's own service account's and is bound
// to no pod, so that it outlives the agent's pod; the agent makes a new one at every start and at half of its life.
type Credential struct {
	// Client asks for tokens.
	Client kubernetes.Interface
	// Cluster is where and how the plugin reaches the API; only its address and trust are used.
	Cluster *rest.Config
	// Namespace and ServiceAccount are the plugin's.
	Namespace, ServiceAccount string
	// Path is the file.
	Path   string
	Logger *slog.Logger
	// Check replaces how often is looked; for tests.
	Check time.Duration
}

// Run writes the file and keeps it valid until the context ends. It leaves the file in place. It returns nil.
func (c Credential) Run(ctx context.Context) error {
	if c.Check == 0 {
		c.Check = tokenCheck
	}
	var renew time.Time
	tick := time.NewTicker(c.Check)
	defer tick.Stop()
	for {
		if _, err := os.Stat(c.Path); !time.Now().Before(renew) || errors.Is(err, fs.ErrNotExist) {
			expiry, err := c.write(ctx)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				c.Logger.Error("renew the plugin's access to the API", "error", err)
			default:
				renew = time.Now().Add(time.Until(expiry) / 2)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (c Credential) write(ctx context.Context) (expiry time.Time, err error) {
	seconds := int64(tokenLifetime / time.Second)
	token, err := c.Client.CoreV1().ServiceAccounts(c.Namespace).CreateToken(ctx, c.ServiceAccount,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("request a token for service account %s/%s: %w", c.Namespace, c.ServiceAccount, err)
	}
	ca := c.Cluster.CAData
	if len(ca) == 0 && c.Cluster.CAFile != "" {
		if ca, err = os.ReadFile(c.Cluster.CAFile); err != nil {
			return time.Time{}, fmt.Errorf("read the API server's certificate authority: %w", err)
		}
	}
	const name = "ambit-cni"
	text, err := clientcmd.Write(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server: c.Cluster.Host, CertificateAuthorityData: ca, InsecureSkipTLSVerify: c.Cluster.Insecure, TLSServerName: c.Cluster.ServerName,
		}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: token.Status.Token}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("write %s: %w", c.Path, err)
	}
	return token.Status.ExpirationTimestamp.Time, writeFile(c.Path, text, 0o600)
}
