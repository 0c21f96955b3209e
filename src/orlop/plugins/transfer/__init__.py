"""The transfer of images within the daemon. Source: containerd's plugins/transfer and core/transfer/local."""
